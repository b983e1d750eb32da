// Start: what the header and overview say, which screen is up, keys, and the reading of all texts.
// Not for: anything that a part does by itself.

const NARROW = matchMedia("(max-width: 899px)");
let stepsTaken = 0;

function openExample(example, { stay = false } = {}) {
  const staysInList = stay && NARROW.matches && state.screen === "list";
  if (staysInList) return update({ example });
  const isStep = state.screen !== "pair";
  if (isStep) stepsTaken++;
  update({ example, screen: "pair" }, { isStep });
  if (NARROW.matches && isStep) byId("pair").focus();
}

/** Leave pair or overview for the list; on a narrow page as the browser's own way back, where it leads there. */
function goBack() {
  if (stepsTaken > 0) {
    stepsTaken--;
    history.back();
  } else update({ screen: "list" });
}

function showOverview() {
  if (state.screen === "overview") return;
  stepsTaken++;
  update({ screen: "overview" }, { isStep: true });
  byId("overview").focus();
}

listeners.push((changed) => {
  if (changed.has("screen")) {
    document.documentElement.dataset.screen = state.screen;
    hideTip();
  }
  if (changed.has("example")) revealRow();
  if (state.screen === "pair" && (changed.has("example") || changed.has("screen"))) drawPair();
  if (["layer", "mode", "share", "view", "otherLayer"].some((name) => changed.has(name))) drawWeights();
  if (changed.has("screen")) revealRow();
});

const KEYS = {
  j: () => stepExample(1),
  k: () => stepExample(-1),
  "/": () => {
    if (NARROW.matches && state.screen !== "list") update({ screen: "list" });
    byId("search").focus();
    byId("search").select();
  },
  "[": () => update({ layer: stepIn(layerChoices(REPORT.cache.layers), state.layer, -1) }),
  "]": () => update({ layer: stepIn(layerChoices(REPORT.cache.layers), state.layer, 1) }),
  m: () => update({ mode: stepIn(MODES, state.mode, 1, true) }),
  c: () => { if (REPORT.other) update({ view: stepIn(VIEWS, state.view, 1, true) }); },
  o: showOverview,
  "?": () => byId("help").showModal(),
};

function pressKey(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  if (event.key === "Escape") return leave(event.target);
  const isTyping = event.target instanceof Element && event.target.matches("input:not([type=range]):not([type=checkbox]), select, textarea");
  if (isTyping || !byId("use-keys").checked || !Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
  if ("[]mc".includes(event.key)) say(stateInWords());
}

function leave(target) {
  if (tipped) {
    hideTip();
  } else if (target === byId("search")) {
    byId("rows").hidden ? byId("search").blur() : byId("rows").focus();
  } else if (NARROW.matches && state.screen !== "list") goBack();
}

function stateInWords() {
  const view = REPORT.other ? `, ${VIEW_TITLES[state.view]}` : "";
  return `layer ${state.layer}, ${MODE_LABELS[state.mode]} weights${view}`;
}

function startTheme() {
  const root = document.documentElement;
  const theme = kept.get("theme");
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  byId("theme").addEventListener("click", () => {
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
    kept.set("theme", root.dataset.theme);
    say(`${root.dataset.theme} colours`);
  });
  byId("use-keys").checked = kept.get("keys") !== "off";
  byId("use-keys").addEventListener("change", () => kept.set("keys", byId("use-keys").checked ? "on" : "off"));
}

function drawAbout() {
  const { cache, other } = REPORT;
  const shown = cache.shown < cache.pairs ? `${whole(cache.shown)} of ${whole(cache.pairs)} pairs` : `${whole(cache.pairs)} pairs`;
  const full = ({ name, judge, source }) => `${name} (${judge || source})`;
  const named = other ? `A: ${full(cache)} · B: ${full(other)}` : cache.name;
  byId("about").textContent = visible([named, other ? "" : cache.judge, shown].filter(Boolean).join(" · "));
  byId("recipe").replaceChildren(recipeTable());
}

/** How the weights were made; with a second cache both recipes, and where they differ. */
function recipeTable() {
  const recipes = [REPORT.cache.recipe, ...(REPORT.other ? [REPORT.other.recipe] : [])];
  const names = [...new Set(recipes.flatMap((recipe) => Object.keys(recipe)))];
  const cell = (text) => {
    const node = make("td", {});
    appendText(node, text ?? "–", false);
    return node;
  };
  const rows = names.map((name) => make("tr", { class: recipes.length > 1 && recipes[0][name] !== recipes[1][name] ? "differs" : null },
    make("th", { scope: "row" }, name), ...recipes.map((recipe) => cell(recipe[name]))));
  const head = recipes.length > 1 ? [make("thead", {}, make("tr", {}, make("td"), make("th", { scope: "col" }, "A"), make("th", { scope: "col" }, "B")))] : [];
  return make("details", {}, make("summary", {}, recipes.length > 1 ? "How the weights of both were made" : "How the weights were made"),
    make("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": "Recipe" }, make("table", {}, ...head, make("tbody", {}, ...rows))),
    make("p", { class: "dim" }, `Report made by ${REPORT.made_by}.`));
}

function start() {
  const trouble = byId("trouble");
  if (typeof DecompressionStream === "undefined") {
    trouble.textContent = "The pairs cannot be shown: this browser cannot unpack them. Firefox 113, Chrome or Edge 103, Safari 16.4 and later can.";
    document.documentElement.classList.add("failed");
    return;
  }
  if (REPORT.version !== 1) {
    trouble.textContent = "The pairs cannot be shown: the file and its script are of different versions.";
    document.documentElement.classList.add("failed");
    return;
  }
  trouble.remove();
  document.documentElement.classList.add("works");
  startTheme();
  drawAbout();
  startPair();
  startList();
  document.addEventListener("keydown", pressKey);
  byId("back").addEventListener("click", goBack);
  byId("to-overview").addEventListener("click", showOverview);
  byId("to-help").addEventListener("click", () => byId("help").showModal());
  byId("skip").addEventListener("click", (event) => { event.preventDefault(); byId(state.screen === "pair" ? "pair" : "rows").focus(); });
  addEventListener("popstate", () => update(readAddress(), { fromAddress: true }));
  document.documentElement.dataset.screen = state.screen;
  update(readAddress(), { fromAddress: true });
  drawSwitches();
  readTexts();
}

async function readTexts() {
  let broken = 0;
  await loadAll((done, of, error) => {
    broken += error ? 1 : 0;
    if (finder.words.length && !error) refresh();
    drawCount(done < of ? `reading texts ${Math.floor((100 * done) / of)} %` : "");
  });
  finder.loading = false;
  refresh();
  if (broken) drawCount(`${broken} damaged parts of the file`);
  document.documentElement.dataset.texts = broken ? "damaged" : "read";
}

start();
