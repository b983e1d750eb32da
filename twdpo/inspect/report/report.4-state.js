// What is shown now, and its way into and out of the address, so that a link or a reload finds the same view.
// Not for: filters and search, which are about finding and stay out of links.

const MODES = ["raw", "fixed", "mixed"];
const VIEWS = ["a", "b", "difference"];
const HASH_LENGTH = 12;

const DEFAULTS = {
  screen: "list", example: null, layer: String(REPORT.cache.default_layer), mode: "raw", share: 0.3, view: "a",
  otherLayer: REPORT.other ? String(REPORT.other.default_layer) : null,
};
const state = { ...DEFAULTS };
const listeners = [];

/** The layer of a stored weight list, or MEAN, from its text in `state`. */
const layerOf = (text) => (text === MEAN ? MEAN : Number(text));
const layerChoices = (layers) => (layers.length > 1 ? [...layers.map(String), MEAN] : layers.map(String));

/** Take over `changes`, tell the listeners which fields changed, and write the address; `isStep` adds to the history. */
function update(changes, { isStep = false, fromAddress = false } = {}) {
  const changed = new Set(Object.keys(changes).filter((name) => state[name] !== changes[name]));
  if (!changed.size) return;
  Object.assign(state, changes);
  if (!fromAddress) writeAddress(isStep);
  for (const listener of listeners) listener(changed);
}

function writeAddress(isStep) {
  const address = addressOf(state);
  if (address === location.hash) return;
  try {
    history[isStep ? "pushState" : "replaceState"](null, "", address || "#");
  } catch {
    location.replace(address || "#");
  }
}

/** The part of the address after the #, with only what is not as it is by default. */
function addressOf(shown) {
  const fields = new URLSearchParams();
  if (shown.screen === "overview") fields.set("show", "overview");
  if (shown.screen === "pair" && shown.example !== null) {
    fields.set("example", EXAMPLES.hash[shown.example].slice(0, HASH_LENGTH));
  }
  if (shown.layer !== DEFAULTS.layer) fields.set("layer", shown.layer);
  if (shown.mode !== DEFAULTS.mode) fields.set("weights", shown.mode);
  if (shown.mode === "mixed") fields.set("mix", String(shown.share));
  if (shown.view !== DEFAULTS.view) fields.set("compare", shown.view);
  if (shown.otherLayer !== DEFAULTS.otherLayer) fields.set("other_layer", shown.otherLayer);
  return fields.size ? `#${fields}` : "";
}

/** The state that the address asks for; what it does not say, or says wrongly, is as by default. */
function readAddress() {
  const fields = new URLSearchParams(location.hash.slice(1));
  const pick = (name, allowed, otherwise) => (allowed.includes(fields.get(name)) ? fields.get(name) : otherwise);
  const hash = fields.get("example") ?? "";
  const example = hash ? EXAMPLES.hash.findIndex((full) => full.startsWith(hash)) : -1;
  const share = Number(fields.get("mix") ?? NaN);
  return {
    example: example >= 0 ? example : state.example,
    screen: example >= 0 ? "pair" : fields.get("show") === "overview" ? "overview" : "list",
    layer: pick("layer", layerChoices(REPORT.cache.layers), DEFAULTS.layer),
    mode: pick("weights", MODES, DEFAULTS.mode),
    share: share >= 0 && share <= 1 ? share : DEFAULTS.share,
    view: REPORT.other ? pick("compare", VIEWS, DEFAULTS.view) : "a",
    otherLayer: REPORT.other ? pick("other_layer", layerChoices(REPORT.other.layers), DEFAULTS.otherLayer) : null,
  };
}

/** Move `value` in `choices` by `step`, stopping at the ends or, with `around`, going on at the other end. */
function stepIn(choices, value, step, around) {
  const at = choices.indexOf(value) + step;
  return around ? choices[(at + choices.length) % choices.length] : choices[Math.max(0, Math.min(choices.length - 1, at))];
}

/** Keep small choices of the reader (theme, keys) where the browser lets a file do so. */
const kept = {
  get(name) {
    try { return localStorage.getItem(`twdpo.${name}`); } catch { return null; }
  },
  set(name, value) {
    try { localStorage.setItem(`twdpo.${name}`, value); } catch { /* the choice lasts as long as the page */ }
  },
};
