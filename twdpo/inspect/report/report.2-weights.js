// From stored weights to those shown: layers, sink fix, mix, moving to other tokens. Pure functions on arrays.
// Not for: drawing. The same arithmetic as twdpo.weights_cache.transforms and twdpo.pipeline.alignment.

const MEAN = "mean";
const FULL_WEIGHT = 8;
const sum = (list) => list.reduce((total, value) => total + value, 0);

/** Weights of one stored layer, or the mean over all of them. */
function selectLayer(weights, layer) {
  if (layer !== MEAN) return weights.get(layer);
  const lists = [...weights.values()];
  if (lists.length === 1) return lists[0];
  return lists[0].map((_, i) => Math.fround(lists.reduce((total, list) => total + list[i], 0) / lists.length));
}

/** The first token gets the mean; the others are rescaled so that the sum is kept. Short answers stay. */
function sinkFix(weights) {
  const n = weights.length;
  if (n < REPORT.cache.sink_fix_min_tokens) return weights;
  const total = sum(weights), mean = total / n, rest = sum(weights.subarray(1));
  return weights.map((weight, i) => Math.fround(i === 0 || rest <= 0 ? mean : weight * ((total - mean) / rest)));
}

/** (1 − share) · w + share. */
function uniformMix(weights, share) {
  if (share === 0) return weights;
  const kept = Math.fround(1 - share), even = Math.fround(share);
  return weights.map((weight) => Math.fround(Math.fround(weight * kept) + even));
}

/** The weights that `state` asks for of one side of the report's own cache. */
function shownWeights(side, layer, mode, share) {
  let weights = selectLayer(side.weights, layer);
  if (mode !== "raw") weights = sinkFix(weights);
  return mode === "mixed" ? uniformMix(weights, share) : weights;
}

/**
 * The other cache's weights on the tokens of `side`: chosen layer, sink fix, moved by characters, mixed, as training does.
 * Tokens that the other cache did not judge get NaN.
 */
function otherWeights(side, other, layer, mode, share) {
  let weights = selectLayer(other.weights, layer);
  if (mode !== "raw") weights = sinkFix(weights);
  if (!other.same) weights = alignWeights(weights, inPoints(side.text, other), inPoints(side.text, side));
  return mode === "mixed" ? uniformMix(weights, share) : weights;
}

/** Offsets in code points, which weights are spread over; those of a text count UTF-16 units. */
function inPoints(text, { starts, ends }) {
  if (text === null || !/[\ud800-\udbff]/.test(text)) return { starts, ends };
  const points = new Int32Array(text.length + 1);
  for (let i = 0; i < text.length; i++) points[i + 1] = points[i] + ((text.charCodeAt(i) & 0xfc00) === 0xdc00 ? 0 : 1);
  return { starts: starts.map((at) => points[at]), ends: ends.map((at) => points[at]) };
}

/** Mass of each token evenly over its characters; Float64Array(length). */
function spread(mass, { starts, ends }, length) {
  const density = new Float64Array(length);
  for (let i = 0; i < starts.length; i++) {
    const each = mass[i] / (ends[i] - starts[i]);
    for (let at = starts[i]; at < ends[i]; at++) density[at] += each;
  }
  return density;
}

/**
 * `weights` of the tokens `from` on the tokens `to`; the mean over the covered ones is kept, the others get NaN.
 * A character that several tokens share gives each its part.
 */
function alignWeights(weights, from, to) {
  const length = lengthOf(from, to);
  const density = spread(weights, from, length);
  const judged = new Uint8Array(length), sharers = new Int32Array(length);
  from.starts.forEach((start, i) => judged.fill(1, start, from.ends[i]));
  to.starts.forEach((start, i) => { for (let at = start; at < to.ends[i]; at++) sharers[at]++; });
  let total = 0, covered = 0;
  const moved = Float64Array.from(to.starts, (start, i) => {
    let mass = 0, isCovered = false;
    for (let at = start; at < to.ends[i]; at++) {
      mass += density[at] / sharers[at];
      isCovered ||= judged[at] === 1;
    }
    if (!isCovered) return NaN;
    total += mass;
    covered++;
    return mass;
  });
  const scale = total > 0 ? (sum(weights) / weights.length) * covered / total : 1;
  return moved.map((mass) => Math.fround(mass * scale));
}

function lengthOf(...sides) {
  let length = 0;
  for (const { ends } of sides) for (const end of ends) if (end > length) length = end;
  return length;
}

/** The share of both lists' mass that lies on the same tokens, from 0 to 1; NaN in `b` is no mass. */
function sharedMass(a, b) {
  const mass = b.map((weight) => (Number.isNaN(weight) ? 0 : weight));
  const totalA = sum(a), totalB = sum(mass);
  return totalA > 0 && totalB > 0 ? sum(a.map((weight, i) => Math.min(weight / totalA, mass[i] / totalB))) : 0;
}

/** The exponential of the entropy: n where all weights are equal, 1 where one has all the mass. */
function effectiveTokens(weights) {
  const total = sum(weights);
  return Math.exp(-sum(weights.map((weight) => (weight > 0 ? (weight / total) * Math.log(weight / total) : 0))));
}

/** How dark a token is drawn, 0 to 1. */
const opacity = (weight) => Math.min(1, Math.log1p(Math.max(0, weight)) / Math.log1p(FULL_WEIGHT));

/** How thick a token is underlined, 0 to 3: what colour says, said without colour. */
const heaviness = (weight) => (weight >= 8 ? 3 : weight >= 4 ? 2 : weight >= 2 ? 1 : 0);

/** Rank of each token, 1 the heaviest; the earlier of two equal ones first. Those without a weight get 0. */
function ranks(weights) {
  const order = [...weights.keys()].filter((i) => !Number.isNaN(weights[i]));
  order.sort((a, b) => weights[b] - weights[a] || a - b);
  const rank = new Int32Array(weights.length);
  order.forEach((token, place) => { rank[token] = place + 1; });
  return rank;
}

/** Tokens that share characters as one: [{first, last, start, end}], `last` included, `end` the furthest. */
function groupTokens({ starts, ends }) {
  const groups = [];
  for (let i = 0; i < starts.length; i++) {
    const group = groups[groups.length - 1];
    if (group && starts[i] < group.end) {
      group.last = i;
      group.end = Math.max(group.end, ends[i]);
    } else {
      groups.push({ first: i, last: i, start: starts[i], end: ends[i] });
    }
  }
  return groups;
}

/** The token of `group` with the most of `values` (for differences: the furthest from 0). */
function heaviestOf(group, values) {
  let best = group.first;
  for (let i = group.first + 1; i <= group.last; i++) {
    if (Math.abs(values[i]) > Math.abs(values[best]) || Number.isNaN(values[best])) best = i;
  }
  return best;
}
