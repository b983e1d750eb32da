// One answer: its text with every token shaded, the strip of weights above it, and moving from token to token.
// Not for: the figures of a token (report.7-tip.js) or what stands around the answers (report.8-pair.js).

/** Units of an answer that are drawn at first; the rest when asked for. */
const TEXT_LIMIT = 24000;
const STRIP_BARS = 240;
const HEAVIEST = 8;

/**
 * An answer as it is drawn: {name, side, other, groups, box, strip, nodes}, and, after `weigh`, its weights: `a` of this
 * cache, `b` of the other one on the same tokens (or null), `values` those shown, `rankA`, `rankB`.
 */
function makeAnswer(name, side, other) {
  const answer = { name, side, other, groups: groupTokens(side), nodes: [], limit: TEXT_LIMIT };
  answer.box = make("div", {
    class: side.text === null ? "text boxes" : "text", role: "group", tabindex: "-1",
    "aria-label": `${name} answer, ${side.starts.length} tokens; arrow keys go from token to token`,
  });
  answer.strip = makeSvg("svg", { class: "strip", preserveAspectRatio: "none", "aria-hidden": "true" });
  answer.box.addEventListener("keydown", (event) => moveInAnswer(event, answer));
  answer.strip.addEventListener("click", (event) => {
    const { left, width } = answer.strip.getBoundingClientRect();
    const token = Math.floor(((event.clientX - left) / width) * side.starts.length);
    flash(answer, answer.groups.findIndex((group) => group.last >= token));
  });
  fillAnswer(answer);
  return answer;
}

/** Put the tokens into the box: spans for groups, plain text for characters that no token covers. */
function fillAnswer(answer) {
  const { side, groups, box } = answer;
  const part = document.createDocumentFragment();
  answer.nodes = [];
  if (side.text === null) {
    groups.forEach((group, g) => part.append(tokenNode(answer, g)));
  } else {
    const end = Math.min(side.text.length, answer.limit);
    let at = 0;
    for (let g = 0; g < groups.length && groups[g].start < end; g++) {
      if (groups[g].start > at) part.append(uncovered(side.text.slice(at, groups[g].start)));
      const node = tokenNode(answer, g);
      const piece = cutAt(side.text.slice(Math.max(at, groups[g].start), groups[g].end), answer.limit);
      if (piece) appendText(node, piece);
      else node.classList.add("nothing");
      part.append(node);
      at = Math.max(at, Math.min(groups[g].end, end));
    }
    if (at < end) part.append(uncovered(cutAt(side.text, end).slice(at)));
  }
  box.replaceChildren(part);
  if (side.text !== null && side.text.length > answer.limit) box.append(showAll(answer));
}

function tokenNode(answer, g) {
  const node = make("span", { class: "t", tabindex: g === 0 ? "0" : "-1", "data-g": String(g) });
  answer.nodes.push(node);
  return node;
}

function uncovered(text) {
  const node = make("span", { class: "un", title: "no token of the judge covers this" });
  appendText(node, text);
  return node;
}

function showAll(answer) {
  const button = make("button", { type: "button", class: "show-all", onclick: () => {
    answer.limit = Infinity;
    fillAnswer(answer);
    paint(answer);
    markFound();
    answer.nodes[0]?.focus();
  } }, `Show all ${whole(answer.side.text.length)} characters`);
  return make("p", { class: "cut" }, `The first ${whole(answer.limit)} are shown. `, button);
}

/** Compute the weights that the state asks for. */
function weigh(answer) {
  const { side, other } = answer;
  const { mode, share } = state;
  answer.a = shownWeights(side, layerOf(state.layer), mode, share);
  answer.b = other ? otherWeights(side, other, layerOf(state.otherLayer), mode, share) : null;
  answer.view = answer.b ? state.view : "a";
  answer.values = answer.view === "a" ? answer.a
    : answer.view === "b" ? answer.b : answer.a.map((weight, i) => weight - answer.b[i]);
  answer.rankA = ranks(answer.a);
  answer.rankB = answer.b && ranks(answer.b);
  answer.heads = answer.groups.map((group) => heaviestOf(group, answer.values));
  answer.shared = answer.b ? sharedMass(answer.a, answer.b) : NaN;
}

/** Shade every token by its value. */
function paint(answer) {
  answer.nodes.forEach((node, g) => {
    const value = answer.values[answer.heads[g]];
    const size = Number.isNaN(value) ? 0 : Math.abs(value);
    const kind = Number.isNaN(value) ? "unjudged" : answer.view === "b" || value < 0 ? "cold" : "warm";
    const empty = node.classList.contains("nothing") ? " nothing" : "";
    node.className = `t ${kind} h${heaviness(size)}${empty}`;
    node.style.setProperty("--a", opacity(size).toFixed(3));
    if (answer.side.text === null) fillBox(node, answer, g, value);
  });
  paintStrip(answer);
}

function fillBox(node, answer, g, value) {
  const { start, end } = answer.groups[g];
  node.replaceChildren(make("span", { class: "place" }, `${start}–${end}`),
    make("span", {}, answer.view === "difference" ? signed(value, 3) : figure(value, 3)));
}

/** A bar for each token, or for a few neighbours the largest; differences hang from the middle. */
function paintStrip(answer) {
  const n = answer.values.length, bars = Math.min(n, STRIP_BARS);
  const isDifference = answer.view === "difference";
  const highest = new Float64Array(bars), lowest = new Float64Array(bars);
  answer.values.forEach((value, i) => {
    const bar = Math.floor((i * bars) / n);
    if (value > highest[bar]) highest[bar] = value;
    if (value < lowest[bar]) lowest[bar] = value;
  });
  const path = (heights, sign) => {
    let line = "";
    const ground = isDifference ? 12 : 24, room = isDifference ? 12 : 23;
    heights.forEach((value, bar) => {
      const height = room * opacity(Math.abs(value));
      if (height > 0.2) line += `M${bar + 0.1} ${ground}V${(ground - sign * height).toFixed(2)}h.8V${ground}z`;
    });
    return line;
  };
  answer.strip.setAttribute("viewBox", `0 0 ${bars} 24`);
  answer.strip.replaceChildren(
    makeSvg("path", { class: answer.view === "b" ? "cold" : "warm", d: path(highest, 1) }),
    makeSvg("path", { class: "cold", d: path(lowest, -1) }),
    makeSvg("rect", { class: "cursor", y: "0", height: "24", width: "0", x: "0" }));
}

/** Show in the strip which token is looked at. */
function pointInStrip(answer, g) {
  const cursor = answer.strip.querySelector(".cursor");
  if (!cursor) return;
  const n = answer.values.length, bars = Math.min(n, STRIP_BARS);
  const width = bars / 200;
  cursor.setAttribute("x", String(g === null ? 0 : ((answer.heads[g] + 0.5) * bars) / n - width / 2));
  cursor.setAttribute("width", g === null ? "0" : String(width));
}

/** The groups with the largest values (differences: the furthest from 0), at most HEAVIEST. */
function heaviestGroups(answer) {
  const size = (g) => Math.abs(answer.values[answer.heads[g]]);
  return [...answer.groups.keys()].filter((g) => size(g) > 0).sort((a, b) => size(b) - size(a) || a - b).slice(0, HEAVIEST);
}

/** Bring a token into sight, focus it and let it flash. */
function flash(answer, g) {
  if (g < 0) return;
  if (!answer.nodes[g]) {
    answer.limit = Infinity;
    fillAnswer(answer);
    paint(answer);
  }
  const node = answer.nodes[g];
  node.scrollIntoView({ block: "center", behavior: isCalm() ? "auto" : "smooth" });
  focusToken(answer, g, { preventScroll: true });
  node.classList.remove("flash");
  void node.offsetWidth;
  node.classList.add("flash");
}

const isCalm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Move the one place in the answer that Tab reaches to group `g`, and the focus with it. */
function focusToken(answer, g, options) {
  answer.box.querySelector(".t[tabindex='0']")?.setAttribute("tabindex", "-1");
  answer.nodes[g].tabIndex = 0;
  answer.nodes[g].focus(options);
}

function moveInAnswer(event, answer) {
  const token = event.target.closest(".t");
  if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
  const g = Number(token.dataset.g), last = answer.nodes.length - 1;
  const isRtl = getComputedStyle(answer.box).direction === "rtl";
  const next = {
    ArrowRight: g + (isRtl ? -1 : 1), ArrowLeft: g - (isRtl ? -1 : 1), Home: 0, End: last,
    ArrowDown: null, ArrowUp: null,
  }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  event.stopPropagation();
  const to = next === null ? lineNeighbour(answer, g, event.key === "ArrowDown" ? 1 : -1) : next;
  focusToken(answer, Math.max(0, Math.min(last, to)));
}

/** The token nearest below (step 1) or above (step -1) of token `g` in the next line. */
function lineNeighbour(answer, g, step) {
  const from = answer.nodes[g].getClientRects()[0] ?? answer.nodes[g].getBoundingClientRect();
  let best = g, nearest = Infinity, line = null;
  for (let i = g + step; i >= 0 && i < answer.nodes.length; i += step) {
    const box = answer.nodes[i].getClientRects()[0];
    if (!box || (step > 0 ? box.top <= from.top + 2 : box.top >= from.top - 2)) continue;
    line ??= box.top;
    if (Math.abs(box.top - line) > 2) break;
    const distance = Math.abs(box.left - from.left);
    if (distance < nearest) [best, nearest] = [i, distance];
  }
  return best;
}
