"use strict";
// What the file carries: the report's JSON at once, the texts and weights of each block when they are inflated.
// Not for: what is computed from them (report.2-weights.js) or drawn.

const REPORT = JSON.parse(document.getElementById("report").textContent);
const EXAMPLES = REPORT.examples;
const COUNT = EXAMPLES.hash.length;
const SIDES = ["chosen", "rejected"];

/** Weight of each of the 2^16 codes: twelve significant bits and a shared exponent. */
const WEIGHT_OF_CODE = (() => {
  const weights = new Float64Array(65536);
  for (let code = 0; code < 65536; code++) {
    const e = code >> 11, m = (code & 2047) / 2048;
    weights[code] = e > 0 ? (1 + m) * 2 ** (e - REPORT.exponent_bias) : m * 2 ** (1 - REPORT.exponent_bias);
  }
  return weights;
})();

/** For each block a promise of its examples; made when first asked for. */
const blockPromises = REPORT.blocks.map(() => null);
/** Example number → its decoded content, once its block is there. */
const decoded = new Array(COUNT).fill(null);
/** Example number → its lower-case text to search in; the hash until the block is there. */
const haystacks = EXAMPLES.hash.map((hash, i) => hash + "\n" + EXAMPLES.title[i].toLowerCase());

function blockOf(example) {
  let low = 0, high = REPORT.blocks.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (REPORT.blocks[middle].first <= example) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** The content of one example: {prompt, chosen, rejected, other}, each side {text, starts, ends, weights}. */
async function loadExample(example) {
  await loadBlock(blockOf(example));
  return decoded[example];
}

function loadBlock(block) {
  blockPromises[block] ??= inflate(document.getElementById(`block-${block}`).textContent).then(
    (bytes) => readBlock(REPORT.blocks[block], bytes));
  return blockPromises[block];
}

async function inflate(base64) {
  const binary = atob(base64.trim());
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function readBlock({ first, count }, bytes) {
  const length = new DataView(bytes.buffer).getUint32(0, true);
  const content = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  const codes = (bytes.length - 4 - length) / 2;
  const high = bytes.subarray(4 + length, 4 + length + codes), low = bytes.subarray(4 + length + codes);
  let at = 0;
  const take = (layers, tokens) => {
    const weights = new Map();
    for (const layer of layers) {
      const list = new Float64Array(tokens);
      for (let i = 0; i < tokens; i++, at++) list[i] = WEIGHT_OF_CODE[(high[at] << 8) | low[at]];
      weights.set(layer, list);
    }
    return weights;
  };
  content.examples.forEach((stored, i) => {
    const example = { prompt: stored.prompt, other: null };
    for (const name of SIDES) {
      example[name] = { text: stored[name].text, ...offsets(stored[name]) };
      example[name].weights = take(REPORT.cache.layers, example[name].starts.length);
    }
    if (stored.other) {
      example.other = {};
      for (const name of SIDES) {
        const same = Boolean(stored.other[name].same);
        const { starts, ends } = same ? example[name] : offsets(stored.other[name]);
        example.other[name] = { same, starts, ends, weights: take(REPORT.other.layers, starts.length) };
      }
    }
    decoded[first + i] = example;
    haystacks[first + i] = haystackOf(first + i, example);
  });
  if (content.examples.length !== count || at !== codes) throw new Error("a block does not hold what it should");
}

function offsets({ gap, len }) {
  const starts = new Int32Array(gap.length), ends = new Int32Array(gap.length);
  let at = 0;
  for (let i = 0; i < gap.length; i++) {
    starts[i] = at + gap[i];
    at = ends[i] = starts[i] + len[i];
  }
  return { starts, ends };
}

function haystackOf(number, example) {
  const parts = [EXAMPLES.hash[number]];
  for (const [, content] of example.prompt ?? []) parts.push(content);
  for (const name of SIDES) parts.push(example[name].text ?? "");
  return parts.join("\n").toLowerCase();
}

/** Inflate all blocks one after another, letting the page breathe in between; `progress(done, of)` after each. */
async function loadAll(progress) {
  for (let block = 0; block < REPORT.blocks.length; block++) {
    try {
      await loadBlock(block);
    } catch (error) {
      progress(block + 1, REPORT.blocks.length, error);
      continue;
    }
    progress(block + 1, REPORT.blocks.length, null);
    await new Promise((resume) => setTimeout(resume));
  }
}

/** Figures of an example that lists sort and filter by; null where the cache has none. */
const mean2 = (a, b) => (a === null || b === null ? null : (a + b) / 2);
const FIGURES = {
  number: (i) => EXAMPLES.number[i],
  agreement: (i) => mean2(EXAMPLES.agreement_chosen[i], EXAMPLES.agreement_rejected[i]),
  probability: (i) => mean2(EXAMPLES.p_cr[i], EXAMPLES.p_rc[i]),
  effective: (i) => mean2(EXAMPLES.effective_chosen[i], EXAMPLES.effective_rejected[i]),
  length: (i) => EXAMPLES.tokens_chosen[i] + EXAMPLES.tokens_rejected[i],
  overlap: (i) => (EXAMPLES.overlap ? EXAMPLES.overlap[i] : null),
};
const disagrees = (i) => FIGURES.probability(i) !== null && FIGURES.probability(i) < 0.5;
const flips = (i) => FIGURES.probability(i) !== null && EXAMPLES.p_cr[i] > 0.5 !== EXAMPLES.p_rc[i] > 0.5;
const agreesLess = (i, bound) => FIGURES.agreement(i) !== null && FIGURES.agreement(i) < bound;
