// The figures of one token, shown beside it (on a phone at the foot of the page) and said to those who listen.
// Not for: moving between tokens (report.6-tokens.js).

/** {answer, g} of the token whose figures are shown, and whether it was chosen (focus, tap) or only pointed at. */
let tipped = null;

/** Show figures for the tokens of the answers inside `place` on hover, focus and tap. */
function startTips(place, answerOf) {
  const at = (target) => {
    const node = target instanceof Element ? target.closest(".t") : null;
    const answer = node && answerOf(node);
    return answer ? { answer, g: Number(node.dataset.g), node } : null;
  };
  place.addEventListener("pointerover", (event) => {
    const hit = event.pointerType === "mouse" && at(event.target);
    if (hit) showTip(hit, false);
  });
  place.addEventListener("pointerout", (event) => {
    if (event.pointerType !== "mouse" || !at(event.target) || at(event.relatedTarget)) return;
    const focused = at(document.activeElement);
    if (focused && tipped?.isChosen) showTip(focused, true);
    else hideTip();
  });
  place.addEventListener("focusin", (event) => {
    const hit = at(event.target);
    if (!hit) return;
    showTip(hit, true);
    if (NARROW.matches) clearOfTip(hit.node);
    say(sayToken(hit.answer, hit.g));
  });
  place.addEventListener("focusout", (event) => { if (!at(event.relatedTarget)) hideTip(); });
  // A tap does not focus a span in every browser.
  place.addEventListener("click", (event) => {
    const hit = at(event.target);
    if (hit && document.activeElement !== hit.node) focusToken(hit.answer, hit.g, { preventScroll: true });
    else if (hit) showTip(hit, true);
  });
  place.addEventListener("scroll", () => { if (tipped) placeTip(tipped.node); }, { passive: true });
  addEventListener("resize", () => { if (tipped) placeTip(tipped.node); });
}

function showTip({ answer, g, node }, isChosen) {
  if (tipped && tipped.answer !== answer) pointInStrip(tipped.answer, null);
  tipped = { answer, g, node, isChosen };
  byId("tip").replaceChildren(...tipContent(answer, g));
  byId("tip").hidden = false;
  placeTip(node);
  pointInStrip(answer, g);
}

function hideTip() {
  if (tipped) pointInStrip(tipped.answer, null);
  tipped = null;
  byId("tip").hidden = true;
}

/** Draw the figures again after the weights changed. */
function refreshTip() {
  if (tipped?.node.isConnected) showTip(tipped, tipped.isChosen);
  else hideTip();
}

/** Below the token, or above where there is no room; on a phone the style puts it at the foot. */
function placeTip(node) {
  const tip = byId("tip"), boxes = node.getClientRects();
  const near = boxes[boxes.length - 1] ?? node.getBoundingClientRect();
  const left = Math.max(8, Math.min(near.left, innerWidth - tip.offsetWidth - 8));
  const below = near.bottom + 8, above = (boxes[0] ?? near).top - tip.offsetHeight - 8;
  const top = below + tip.offsetHeight > innerHeight - 8 && above > 8 ? above : below;
  tip.style.setProperty("--left", `${left}px`);
  tip.style.setProperty("--top", `${Math.max(8, Math.min(top, innerHeight - tip.offsetHeight - 8))}px`);
}

/** Where the figures stand at the foot of the page, move their token out from under them. */
function clearOfTip(node) {
  const under = node.getBoundingClientRect().bottom + 12 - byId("tip").getBoundingClientRect().top;
  if (under > 0) byId("pair").scrollBy({ top: under, behavior: isCalm() ? "auto" : "smooth" });
}

function tokenText(answer, g) {
  const { start, end } = answer.groups[g];
  return answer.side.text === null ? "" : answer.side.text.slice(start, Math.min(end, start + 400));
}

/** "token 9 of 245", or "tokens 9–11 of 245" where they share characters. */
function tokenNumber(answer, g) {
  const { first, last } = answer.groups[g];
  const n = answer.side.starts.length;
  return first === last ? `token ${first + 1} of ${n}` : `tokens ${first + 1}–${last + 1} of ${n}, sharing characters`;
}

const shareOf = (weights, i) => weights[i] / sum(weights.filter((weight) => !Number.isNaN(weight)));
const judgedCount = (weights) => weights.reduce((count, weight) => count + !Number.isNaN(weight), 0);

function sayToken(answer, g) {
  const i = answer.heads[g], n = judgedCount(answer.view === "b" ? answer.b : answer.a);
  const text = oneLine(tokenText(answer, g), 60);
  const head = `${tokenNumber(answer, g)}${text && `, “${text}”`}: `;
  if (answer.view === "difference") return `${head}${figure(answer.a[i])} here, ${figure(answer.b[i])} in the other, difference ${signed(answer.values[i])}`;
  const weights = answer.view === "b" ? answer.b : answer.a, rank = answer.view === "b" ? answer.rankB : answer.rankA;
  if (Number.isNaN(weights[i])) return `${head}not judged by the other cache`;
  return `${head}weight ${figure(weights[i])}, rank ${rank[i]} of ${n}, ${percent(shareOf(weights, i))} of the total`;
}

function tipContent(answer, g) {
  const i = answer.heads[g], { start, end } = answer.groups[g];
  const text = oneLine(tokenText(answer, g), 60);
  const head = make("p", { class: "tip-head" },
    text ? make("bdi", { class: "tip-text" }, text.replaceAll(" ", "␣")) : null,
    make("span", { class: "dim" }, tokenNumber(answer, g)));
  const columns = [{ name: answer.b ? "A" : "", weights: answer.a, rank: answer.rankA }];
  if (answer.b) columns.push({ name: "B", weights: answer.b, rank: answer.rankB });
  const row = (label, cell) => make("tr", {}, make("th", { scope: "row" }, label), ...columns.map((column) => make("td", {}, cell(column))));
  const body = make("tbody", {},
    row("weight", ({ weights }) => (Number.isNaN(weights[i]) ? "not judged" : figure(weights[i], 5))),
    answer.b ? make("tr", {}, make("th", { scope: "row" }, "A − B"), make("td", { colspan: "2" }, signed(answer.a[i] - answer.b[i], 5))) : null,
    row("rank", ({ weights, rank }) => (rank[i] ? `${rank[i]} of ${judgedCount(weights)}` : "–")),
    row("share", ({ weights }) => percent(shareOf(weights, i), 4)),
    make("tr", {}, make("th", { scope: "row" }, "characters"), make("td", { colspan: String(columns.length) }, `${start}–${end}`)));
  const header = answer.b ? make("thead", {}, make("tr", {}, make("td"), ...columns.map(({ name }) => make("th", { scope: "col" }, name)))) : null;
  return [head, make("table", {}, header, body), layerTable(answer, i)];
}

/** The weight of token `i` in each stored layer, as the switches have it; of the cache that is looked at. */
function layerTable(answer, i) {
  const isOther = answer.view === "b";
  const layers = isOther ? REPORT.other.layers : REPORT.cache.layers;
  const shown = layerOf(isOther ? state.otherLayer : state.layer);
  const { mode, share } = state;
  const key = `${isOther} ${mode} ${share}`;
  if (answer.layersKey !== key) {
    answer.layersKey = key;
    answer.byLayer = new Map(layers.map((layer) => [layer, isOther
      ? otherWeights(answer.side, answer.other, layer, mode, share) : shownWeights(answer.side, layer, mode, share)]));
  }
  const lines = layers.map((layer) => {
    const weight = answer.byLayer.get(layer)[i];
    const bar = make("span", { class: isOther ? "bar-cell cold" : "bar-cell warm" });
    bar.style.setProperty("--w", Number.isNaN(weight) ? "0" : opacity(weight).toFixed(3));
    return make("tr", { class: layer === shown || shown === MEAN ? "on" : null },
      make("th", { scope: "row" }, String(layer)), make("td", { class: "bar-place" }, bar), make("td", {}, figure(weight)));
  });
  return make("table", { class: "layers" },
    make("caption", {}, `${answer.b ? (isOther ? "B, " : "A, ") : ""}weight by layer`), make("tbody", {}, ...lines));
}
