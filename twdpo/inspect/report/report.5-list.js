// The list of pairs: search, filters, order, and only the rows in sight as elements.
// Not for: the pair itself.

const ROW_HEIGHT = 84;
const SPARE_ROWS = 6;
const SORTS = [
  { key: "number", label: "cache order" },
  { key: "agreement", label: "order agreement", short: "agreement" },
  { key: "probability", label: "judge margin", short: "P(chosen)" },
  { key: "effective", label: "effective tokens", short: "effective" },
  { key: "length", label: "length", short: "tokens" },
  ...(EXAMPLES.overlap ? [{ key: "overlap", label: "overlap with the other cache", short: "overlap" }] : []),
];
const FILTERS = [
  { key: "truncated", label: "truncated", fits: (i) => EXAMPLES.truncated[i] },
  { key: "disagrees", label: "judge against label", fits: disagrees },
  { key: "flips", label: "verdict flips with order", fits: flips },
  { key: "agreement", label: "low order agreement", fits: (i) => agreesLess(i, finder.threshold) },
];

const finder = { words: [], filters: new Set(), threshold: 0.5, sort: "number", rising: true, loading: true };
/** Example numbers in the order of the list. */
let found = [];
const rowNodes = new Map();

function startList() {
  for (const { key, label } of SORTS) byId("sort").append(make("option", { value: key }, label));
  byId("filters").append(
    make("button", { type: "button", class: "chip", "data-key": "all", onclick: () => clearFilters() }, "all"),
    ...FILTERS.map(({ key, label }) =>
      make("button", { type: "button", class: "chip", "data-key": key, onclick: () => toggleFilter(key) },
        label, " ", make("span", { class: "number" }))));
  byId("search").addEventListener("input", () => {
    finder.words = wordsOf(byId("search").value);
    refresh();
    markFound();
  });
  byId("threshold").addEventListener("input", () => {
    finder.threshold = Number(byId("threshold").value);
    byId("threshold-out").textContent = fixed(finder.threshold);
    refresh();
  });
  byId("sort").addEventListener("change", () => { finder.sort = byId("sort").value; refresh(); });
  byId("direction").addEventListener("click", () => { finder.rising = !finder.rising; refresh(); });
  byId("reset").addEventListener("click", () => {
    byId("search").value = "";
    finder.words = [];
    clearFilters();
    byId("search").focus();
    markFound();
  });
  byId("more").addEventListener("click", () => {
    const isOpen = byId("more").getAttribute("aria-expanded") !== "true";
    byId("more").setAttribute("aria-expanded", String(isOpen));
    byId("refine").classList.toggle("open", isOpen);
  });
  byId("rows").addEventListener("scroll", drawRows, { passive: true });
  new ResizeObserver(drawRows).observe(byId("rows"));
  byId("rows").addEventListener("click", (event) => {
    const row = event.target.closest("[role=option]");
    if (row) openExample(Number(row.dataset.example));
  });
  byId("rows").addEventListener("keydown", listKey);
  refresh();
}

function listKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const page = Math.max(1, Math.floor(byId("rows").clientHeight / ROW_HEIGHT) - 1);
  const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -COUNT, End: COUNT }[event.key];
  if (step) stepExample(step);
  else if (event.key === "Enter" || event.key === " ") {
    if (state.example !== null) openExample(state.example);
    byId("pair").focus();
  } else return;
  event.preventDefault();
}

/** The words and "quoted phrases" of a search, in lower case. */
const wordsOf = (text) => [...text.toLowerCase().matchAll(/"([^"]+)"|([^\s"]+)/g)].map((hit) => hit[1] ?? hit[2]);

function toggleFilter(key) {
  finder.filters[finder.filters.has(key) ? "delete" : "add"](key);
  refresh();
}

function clearFilters() {
  finder.filters.clear();
  refresh();
}

/** Find and order the pairs anew. */
function refresh() {
  const active = FILTERS.filter(({ key }) => finder.filters.has(key));
  found = [];
  for (let i = 0; i < COUNT; i++) {
    if (active.every(({ fits }) => fits(i)) && finder.words.every((word) => haystacks[i].includes(word))) found.push(i);
  }
  const value = FIGURES[finder.sort], sign = finder.rising ? 1 : -1;
  found.sort((a, b) => {
    const x = value(a), y = value(b);
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    return sign * (x - y) || a - b;
  });
  drawControls();
  rowNodes.clear();
  byId("run").replaceChildren();
  byId("run").style.height = `${found.length * ROW_HEIGHT}px`;
  drawRows();
}

function drawControls() {
  for (const chip of byId("filters").children) {
    const filter = FILTERS.find(({ key }) => key === chip.dataset.key);
    const isOn = filter ? finder.filters.has(filter.key) : finder.filters.size === 0;
    chip.setAttribute("aria-pressed", String(isOn));
    if (filter) chip.querySelector(".number").textContent = whole(countWhere(filter.fits));
  }
  byId("threshold-row").hidden = !finder.filters.has("agreement");
  byId("direction").firstChild.textContent = finder.rising ? "↑" : "↓";
  byId("direction").setAttribute("aria-label", `Sort direction: ${finder.rising ? "rising" : "falling"}`);
  byId("more").textContent = finder.filters.size ? `Filter (${finder.filters.size})` : "Filter";
  drawCount();
  byId("empty").hidden = found.length > 0;
  byId("rows").hidden = found.length === 0;
  byId("empty-why").textContent = COUNT === 0
    ? "The report holds no pairs."
    : finder.loading && finder.words.length
      ? "Texts are still being read; pairs appear as they are found."
      : `Search for fewer or other words${finder.filters.size ? ", or take filters away" : ""}.`;
  byId("reset").hidden = COUNT === 0;
}

function countWhere(fits) {
  let count = 0;
  for (let i = 0; i < COUNT; i++) if (fits(i)) count++;
  return count;
}

function drawCount(progress = "") {
  const place = found.indexOf(state.example);
  byId("count").textContent = `${whole(found.length)} of ${whole(COUNT)}${progress && ` · ${progress}`}`;
  byId("count").dataset.place = String(place);
}

/** Make the rows that are in sight, and let go of the others. */
function drawRows() {
  const box = byId("rows"), run = byId("run");
  const first = Math.max(0, Math.floor(box.scrollTop / ROW_HEIGHT) - SPARE_ROWS);
  const last = Math.min(found.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW_HEIGHT) + SPARE_ROWS);
  for (const [place, node] of rowNodes) {
    if (place < first || place >= last) {
      node.remove();
      rowNodes.delete(place);
    }
  }
  for (let place = first; place < last; place++) {
    if (!rowNodes.has(place)) {
      const node = makeRow(found[place], place);
      rowNodes.set(place, node);
      run.append(node);
    }
  }
  markRow();
}

function makeRow(i, place) {
  const row = make("div", {
    class: "row", role: "option", id: `row-${i}`, "data-example": String(i),
    "aria-setsize": String(found.length), "aria-posinset": String(place + 1),
  },
  make("p", { class: "row-title", dir: "auto" }, oneLine(EXAMPLES.title[i], 160) || EXAMPLES.hash[i]),
  make("p", { class: "row-facts" },
    make("span", {}, `#${EXAMPLES.number[i]}`), make("span", { class: "row-badges" }, ...badges(i)), make("span", { class: "row-figure" }, rowFigure(i))));
  row.style.transform = `translateY(${place * ROW_HEIGHT}px)`;
  return row;
}

function badges(i) {
  const made = [];
  const badge = (kind, text, title) => made.push(make("span", { class: `badge ${kind}`, title }, text));
  if (disagrees(i)) badge("against", "against label", "The judge prefers the rejected answer, over both orders");
  if (flips(i)) badge("flips", "flips", "The judge prefers another answer when their order is changed");
  if (agreesLess(i, finder.threshold)) badge("low", "low agreement", "The attention of the two orders lies on different tokens");
  if (EXAMPLES.truncated[i]) badge("truncated", "truncated", "The judge did not see all of it");
  return made;
}

/** The figure that the list is sorted by. */
function rowFigure(i) {
  if (finder.sort === "effective") return `${fixed(100 * FIGURES.effective(i), 0)} % effective`;
  if (finder.sort === "length") return `${whole(FIGURES.length(i))} tokens`;
  if (finder.sort === "agreement") return `agreement ${fixed(FIGURES.agreement(i))}`;
  if (finder.sort === "overlap") return `overlap ${fixed(FIGURES.overlap(i))}`;
  if (FIGURES.probability(i) === null) return `${whole(FIGURES.length(i))} tokens`;
  return `P(chosen) ${fixed(FIGURES.probability(i))}`;
}

function markRow() {
  for (const node of rowNodes.values()) {
    node.setAttribute("aria-selected", String(Number(node.dataset.example) === state.example));
  }
  const isDrawn = state.example !== null && byId(`row-${state.example}`);
  if (isDrawn) byId("rows").setAttribute("aria-activedescendant", `row-${state.example}`);
  else byId("rows").removeAttribute("aria-activedescendant");
}

/** Bring the row of the example into sight. */
function revealRow() {
  const place = found.indexOf(state.example), box = byId("rows");
  if (place < 0 || !box.clientHeight) return markRow();
  const top = place * ROW_HEIGHT;
  if (top < box.scrollTop) box.scrollTop = top;
  else if (top + ROW_HEIGHT > box.scrollTop + box.clientHeight) box.scrollTop = top + ROW_HEIGHT - box.clientHeight;
  drawRows();
  drawCount();
}

/** Go `step` pairs on in the list; where the example is not in it, begin at its start. */
function stepExample(step) {
  if (!found.length) return;
  const place = found.indexOf(state.example);
  const next = place < 0 ? 0 : Math.max(0, Math.min(found.length - 1, place + step));
  openExample(found[next], { stay: true });
}
