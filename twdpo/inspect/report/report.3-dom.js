// Making elements, and showing texts and numbers. Text from the data set goes into the page by textContent alone.
// Not for: what is shown where.

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, properties (`.name`), listeners (`onname`, a function) and children (nodes or texts). */
function make(tag, settings = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(settings)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith(".")) node[name.slice(1)] = value;
    else if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function makeSvg(tag, settings = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(settings)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// As twdpo.weights_cache.picture.visible: what would hide or turn text is shown by name. Joiners and line feeds stay.
const UNSEEN = /(?![\n\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu;
const codePoint = (character) => character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
const visible = (text) =>
  text.replace(UNSEEN, (character) => (character === "\t" ? "    " : `⟨U+${codePoint(character)}⟩`));

/** Append `text` to `parent`, each line feed with a mark before it (drawn by the style, so that copies stay clean). */
function appendText(parent, text, marked = true) {
  const lines = visible(text).split("\n");
  if (lines[0]) parent.append(lines[0]);
  for (const line of lines.slice(1)) {
    parent.append(marked ? make("i", { class: "nl" }, "\n") : "\n");
    if (line) parent.append(line);
  }
}

/** One line of at most `most` characters for a label: the characters of a token, a title. */
function oneLine(text, most = 80) {
  const shown = visible(text.length > 4 * most ? cutAt(text, 4 * most) : text).replaceAll("\n", "↵");
  const points = [...shown];
  return points.length > most || text.length > 4 * most ? points.slice(0, most - 1).join("") + "…" : shown;
}

/** The beginning of `text`, at most `length` units, never half a character. */
function cutAt(text, length) {
  const half = (text.charCodeAt(length - 1) & 0xfc00) === 0xd800;
  return text.slice(0, half ? length - 1 : length);
}

/** `value` with `digits` significant digits, plainly: 9.074, 0.003214, 1 234 never as 1e3. */
function figure(value, digits = 4) {
  if (value === null || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const places = digits - 1 - Math.floor(Math.log10(Math.abs(value)));
  return value.toLocaleString("en", {
    minimumFractionDigits: Math.min(12, Math.max(0, places)), maximumFractionDigits: Math.min(12, Math.max(0, places)),
  }).replace("-", "−");
}
const fixed = (value, places = 2) =>
  value === null || Number.isNaN(value) ? "–" : value.toFixed(places).replace("-", "−");
const signed = (value, digits = 4) => (value > 0 ? "+" : "") + figure(value, digits);
const percent = (value, digits = 3) => (Number.isNaN(value) ? "–" : `${figure(100 * value, digits)} %`);
const whole = (value) => value.toLocaleString("en");

/** Say `text` to those who listen to the page. */
function say(text) {
  byId("say").textContent = text;
}

/** Radio-like buttons: {value, label, title}; `choose(value)` when one is pressed. */
function segments(name, label, options, value, choose) {
  const buttons = options.map((option) => make("button", {
    type: "button", role: "radio", "data-value": option.value, title: option.title,
    "aria-checked": String(option.value === value), tabindex: option.value === value ? "0" : "-1",
    onclick: () => choose(option.value),
  }, option.label));
  const group = make("div", { class: "segments", role: "radiogroup", "aria-label": label, "data-name": name }, ...buttons);
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    const at = options.findIndex((option) => option.value === group.querySelector("[aria-checked=true]")?.dataset.value);
    const next = options[(at + step + options.length) % options.length].value;
    choose(next);
    document.querySelector(`[data-name="${name}"] [aria-checked=true]`)?.focus();
  });
  return group;
}

/** Make the pressed one of the radio-like buttons called `name` the one with `value`. */
function press(group, value) {
  for (const button of group.querySelectorAll("[role=radio]")) {
    const isOn = button.dataset.value === value;
    button.setAttribute("aria-checked", String(isOn));
    button.tabIndex = isOn ? 0 : -1;
  }
}
