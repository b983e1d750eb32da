// The pair that is looked at: its facts, switches, prompt and both answers.
// Not for: a token's shade (report.6-tokens.js) or figures (report.7-tip.js).

const LONG_PROMPT = 900;
const MANY_LAYERS = 9;
const MODE_LABELS = { raw: "raw", fixed: "sink-fixed", mixed: "mixed" };
const VIEW_LABELS = { a: "A", b: "B", difference: "A − B" };
const VIEW_TITLES = { a: "this cache", b: "the other cache", difference: "the difference: this cache less the other" };

/** The parts of the pair view that stay, and the answers drawn in it. */
const pairView = { example: null, answers: [], parts: {} };

function startPair() {
  const parts = pairView.parts;
  parts.head = make("header", { class: "pair-head" });
  parts.switches = make("div", { class: "switches", role: "group", "aria-label": "What is shown" });
  parts.legend = make("div", { class: "legend" });
  parts.note = make("p", { class: "notice", hidden: true });
  parts.prompt = make("section", { class: "prompt", "aria-label": "Prompt" });
  parts.answers = make("div", { class: "answers" });
  byId("pair").append(parts.head, parts.switches, parts.legend, parts.note, parts.prompt, parts.answers);
  makeSwitches(parts.switches);
  startTips(byId("pair"), (node) => pairView.answers.find(({ box }) => box.contains(node)));
}

function layerSwitch(name, label, layers, field) {
  const choices = layerChoices(layers);
  const text = (value) => (value === MEAN ? "mean of layers" : value);
  if (choices.length <= MANY_LAYERS) {
    const options = choices.map((value) => ({ value, label: value === MEAN ? "mean" : value, title: text(value) }));
    return segments(name, label, options, state[field], (value) => update({ [field]: value }));
  }
  const select = make("select", { "aria-label": label, "data-name": name, onchange: () => update({ [field]: select.value }) },
    ...choices.map((value) => make("option", { value }, text(value))));
  select.value = state[field];
  return select;
}

function makeSwitches(place) {
  const field = (label, ...controls) => make("div", { class: "field" }, make("span", { class: "field-name", "aria-hidden": "true" }, label), ...controls);
  const slider = make("input", { type: "range", id: "share", min: "0", max: "1", step: "0.01", "aria-label": "even share λ",
    oninput: () => update({ share: Number(slider.value) }) });
  const mix = make("label", { class: "mix", id: "mix" }, "λ ", slider, make("output", { id: "share-out", for: "share" }));
  place.append(
    field(REPORT.other ? "Layer of A" : "Layer", layerSwitch("layer", "Layer", REPORT.cache.layers, "layer")),
    field("Weights", segments("mode", "Weights", MODES.map((value) => ({ value, label: MODE_LABELS[value] })), state.mode,
      (mode) => update({ mode })), mix));
  if (REPORT.other) {
    place.append(
      field("Show", segments("view", "Cache shown", VIEWS.map((value) => ({ value, label: VIEW_LABELS[value], title: VIEW_TITLES[value] })),
        state.view, (view) => update({ view }))),
      field("Layer of B", layerSwitch("other-layer", "Layer of the other cache", REPORT.other.layers, "otherLayer")));
  }
}

function drawSwitches() {
  const set = (name, value) => {
    const control = document.querySelector(`[data-name="${name}"]`);
    if (control?.tagName === "SELECT") control.value = value;
    else if (control) press(control, value);
  };
  set("layer", state.layer);
  set("mode", state.mode);
  set("view", state.view);
  set("other-layer", state.otherLayer);
  byId("mix").hidden = state.mode !== "mixed";
  byId("share").value = String(state.share);
  byId("share-out").textContent = fixed(state.share);
  drawLegend();
}

function drawLegend() {
  const printed = make("span", { class: "printed" }, stateInWords());
  const view = pairView.answers[0]?.view ?? (REPORT.other ? state.view : "a");
  const swatch = (weight, text) => {
    const node = make("span", { class: `swatch ${view === "b" || weight < 0 ? "cold" : "warm"} h${heaviness(Math.abs(weight))}` }, text);
    node.style.setProperty("--a", opacity(Math.abs(weight)).toFixed(3));
    return node;
  };
  if (view === "difference") {
    pairView.parts.legend.replaceChildren(
      make("span", { class: "legend-name" }, "heavier in B"), ...[-8, -4, -2, -1, 0, 1, 2, 4, 8].map((weight) =>
        swatch(weight, weight === 0 ? "0" : signed(weight, 1))), make("span", { class: "legend-name" }, "heavier in A"), printed);
  } else {
    pairView.parts.legend.replaceChildren(make("span", { class: "legend-name" }, `weight${REPORT.other ? ` in ${VIEW_LABELS[view]}` : ""}, mean 1`),
      ...[0.25, 0.5, 1, 2, 4, 8].map((weight) => swatch(weight, weight === 8 ? "8+" : String(weight))), printed);
  }
}

/** Show the example that the state names; what comes late, of an example left since, is dropped. */
async function drawPair() {
  const example = state.example;
  if (example === null || pairView.example === example) return;
  pairView.example = example;
  pairView.answers = [];
  hideTip();
  drawHead(example);
  const { parts } = pairView;
  parts.prompt.replaceChildren();
  parts.answers.replaceChildren(make("p", { class: "dim waiting" }, "Reading…"));
  let content;
  try {
    content = await loadExample(example);
  } catch (error) {
    if (pairView.example === example) parts.answers.replaceChildren(make("p", { class: "notice" }, `This part of the file is damaged: ${error.message}`));
    return;
  }
  if (pairView.example !== example) return;
  drawNote(content);
  drawPrompt(content.prompt);
  pairView.answers = SIDES.map((name) => makeAnswer(name, content[name], content.other && content.other[name]));
  parts.answers.replaceChildren(...pairView.answers.map((answer) => makeSide(answer, example)));
  byId("pair").scrollTop = 0;
  drawWeights();
  markFound();
}

function drawHead(example) {
  const hash = EXAMPLES.hash[example];
  const step = (by, label, sign) => make("button", { type: "button", class: "quiet round", "aria-label": label, title: `${label} (${by > 0 ? "j" : "k"})`,
    onclick: () => stepExample(by) }, make("span", { "aria-hidden": "true" }, sign));
  pairView.parts.head.replaceChildren(
    make("div", { class: "pair-title" }, make("h2", {}, `Pair #${EXAMPLES.number[example]}`),
      make("code", { class: "hash", title: "example hash" }, hash), ...badges(example)),
    make("div", { class: "steps" }, step(-1, "Pair before", "↑"), step(1, "Next pair", "↓")),
    verdictLine(example));
}

/** What the judge said in each order, as a sentence and on a line from 0 to 1. */
function verdictLine(example) {
  const cr = EXAMPLES.p_cr[example], rc = EXAMPLES.p_rc[example];
  if (cr === null && rc === null) return make("p", { class: "verdict dim" }, "The judge's verdict is not recorded.");
  const dot = (p, kind) => (p === null ? "" : makeSvg("circle", { class: kind, cx: String(4 + 112 * p), cy: "8", r: "4" }));
  const line = makeSvg("svg", { class: "scale", viewBox: "0 0 120 16", "aria-hidden": "true" },
    makeSvg("path", { class: "scale-line", d: "M4 8H116M60 3V13" }), dot(cr, "dot-cr"), dot(rc, "dot-rc"));
  return make("p", { class: "verdict" }, make("span", {}, "P(chosen) "),
    make("b", {}, fixed(cr)), " shown first, ", make("b", {}, fixed(rc)), " shown second ", line);
}

function drawNote(content) {
  const { note } = pairView.parts;
  const notes = [];
  if (content.chosen.text === null) notes.push("The texts are not in this report, so tokens stand as boxes with their offsets and weights. Annotate with --include-text, or pass the data set with --dataset, to see them.");
  if (REPORT.other && !content.other) notes.push("The other cache (B) has no weights for this pair.");
  note.textContent = notes.join(" ");
  note.hidden = !notes.length;
}

function drawPrompt(prompt) {
  const place = pairView.parts.prompt;
  place.hidden = prompt === null;
  if (prompt === null) return;
  const length = prompt.reduce((total, [, content]) => total + content.length, 0);
  const lines = prompt.reduce((total, [, content]) => total + content.split("\n", 40).length, 0);
  const turns = make("div", { class: "turns" });
  const fill = (limit) => {
    turns.replaceChildren(...prompt.map(([role, content]) => {
      const text = make("div", { class: "turn-text" });
      appendText(text, content.length > limit ? `${cutAt(content, limit)}…` : content, false);
      return make("div", { class: "turn" }, make("p", { class: "role" }, oneLine(role, 40)), text);
    }));
  };
  fill(TEXT_LIMIT);
  const children = [make("h3", {}, "Prompt"), turns];
  if (length > LONG_PROMPT || lines > 14) {
    turns.classList.add("folded");
    const button = make("button", { type: "button", class: "quiet fold", "aria-expanded": "false", onclick: () => {
      const isFolded = turns.classList.toggle("folded");
      if (!isFolded) fill(Infinity);
      button.setAttribute("aria-expanded", String(!isFolded));
      button.textContent = isFolded ? `Show all ${whole(length)} characters` : "Show less";
      markFound();
    } }, `Show all ${whole(length)} characters`);
    children.push(button);
  }
  place.replaceChildren(...children);
}

function makeSide(answer, example) {
  answer.facts = make("p", { class: "facts" });
  answer.heavy = make("div", { class: "heavy", role: "group", "aria-label": `Heaviest tokens of the ${answer.name} answer` });
  answer.example = example;
  return make("section", { class: `side ${answer.name}`, "aria-label": answer.name },
    make("h3", {}, make("span", { class: "mark", "aria-hidden": "true" }, answer.name === "chosen" ? "✓" : "✕"), ` ${answer.name}`),
    answer.facts, answer.strip, answer.box, answer.heavy);
}

/** Compute and draw all that depends on layer, mode, share and view. */
function drawWeights() {
  for (const answer of pairView.answers) {
    weigh(answer);
    paint(answer);
    drawFacts(answer);
    drawHeavy(answer);
  }
  drawSwitches();
  refreshTip();
}

function drawFacts(answer) {
  const n = answer.side.starts.length;
  const weights = (answer.view === "b" ? answer.b : answer.a).filter((weight) => !Number.isNaN(weight));
  const effective = effectiveTokens(weights);
  const fact = (name, value, title) => make("span", { class: "fact", "data-fact": name, title }, make("b", {}, value), ` ${name}`);
  answer.facts.replaceChildren(
    fact("tokens", whole(n)),
    fact("effective", `${figure(effective, 3)} (${fixed((100 * effective) / n, 0)} %)`, "exponential of the entropy of the weights shown"),
    fact("order agreement", fixed(EXAMPLES[`agreement_${answer.name}`][answer.example]), "mass that both orders share, deepest layer"),
    ...(answer.b ? [fact("shared by A and B", fixed(answer.shared, 3), "part of the weight that both caches put on the same tokens")] : []));
}

function drawHeavy(answer) {
  const chip = (g) => {
    const value = answer.values[answer.heads[g]];
    const text = oneLine(tokenText(answer, g), 24) || `${answer.groups[g].start}–${answer.groups[g].end}`;
    return make("button", { type: "button", class: "chip heavy-token", "data-g": String(g), onclick: () => flash(answer, g) },
      make("bdi", { class: "tip-text" }, text.trim() === "" ? text.replaceAll(" ", "␣") : text.trim()), " ",
      make("span", { class: "number" }, answer.view === "difference" ? signed(value, 3) : figure(value, 3)));
  };
  answer.heavy.replaceChildren(
    make("span", { class: "dim" }, answer.view === "difference" ? "furthest apart" : "heaviest"), ...heaviestGroups(answer).map(chip));
}

/** Mark the words searched for in the pair, where the browser can do so without touching the elements. */
function markFound() {
  if (!globalThis.CSS?.highlights) return;
  CSS.highlights.delete("found");
  if (!finder.words.length) return;
  const ranges = [];
  for (const place of byId("pair").querySelectorAll(".turn-text, .text:not(.boxes)")) rangesIn(place, ranges);
  CSS.highlights.set("found", new Highlight(...ranges));
}

function rangesIn(place, ranges) {
  const walker = document.createTreeWalker(place, NodeFilter.SHOW_TEXT), nodes = [];
  let text = "";
  while (walker.nextNode()) {
    nodes.push({ node: walker.currentNode, at: text.length });
    text += walker.currentNode.data;
  }
  const lower = text.toLowerCase();
  if (lower.length !== text.length) return;
  for (const word of finder.words) {
    let first = 0;
    for (let at = lower.indexOf(word); at >= 0 && ranges.length < 500; at = lower.indexOf(word, at + word.length)) {
      while (first + 1 < nodes.length && nodes[first + 1].at <= at) first++;
      let last = first;
      while (last + 1 < nodes.length && nodes[last + 1].at < at + word.length) last++;
      const range = new Range();
      range.setStart(nodes[first].node, at - nodes[first].at);
      range.setEnd(nodes[last].node, at + word.length - nodes[last].at);
      ranges.push(range);
    }
  }
}
