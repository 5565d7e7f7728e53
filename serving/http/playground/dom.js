// Elements made of texts alone: nothing that a model or a user wrote is ever read as HTML.
import { t } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
let made = 0;

/** An id that no other element has. */
export const uid = () => `e${++made}`;

/** An element: `el("button.primary#go", {word: "ask", onclick}, child, ...)`; `word` names its text in words.json. */
export function el(spec, options = {}, ...children) {
  const [, tag, rest] = spec.match(/^([\w-]+)(.*)$/);
  const node = document.createElement(tag);
  for (const [, mark, name] of rest.matchAll(/([.#])([\w-]+)/g)) {
    if (mark === ".") node.classList.add(name); else node.id = name;
  }
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || value === null) continue;
    if (name === "word") { node.dataset.word = value; node.textContent = t(value); }
    else if (name === "wordLabel") { node.dataset.wordLabel = value; node.setAttribute("aria-label", t(value)); }
    else if (name === "wordPlaceholder") { node.dataset.wordPlaceholder = value; node.placeholder = t(value); }
    else if (name in node && !name.includes("-")) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((one) => one !== null && one !== undefined));
  return node;
}

/** An element of SVG. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A field with its label above it. */
export function field(word, input, hint) {
  input.id ||= uid();
  const note = hint ? el("p.hint", { word: hint, id: uid() }) : null;
  if (note) input.setAttribute("aria-describedby", note.id);
  return el("div.field", {}, el("label", { word, htmlFor: input.id }), input, note);
}

/** A select of [value, text] pairs. */
export function select(pairs, chosen) {
  const node = el("select");
  options(node, pairs, chosen);
  return node;
}

/** Give a select new [value, text] pairs, and keep what is chosen where it is still there. */
export function options(node, pairs, chosen = node.value) {
  node.replaceChildren(...pairs.map(([value, text]) => el("option", { value, textContent: text })));
  if (pairs.some(([value]) => value === chosen)) node.value = chosen;
}

/** A label of a judgement: a colour and, for those who don't see it, a word. */
export function mark(colour, text, title) {
  return el(`span.mark.${colour}`, { title }, el("span.dot", { ariaHidden: "true" }), text);
}

/** The mark of a certificate: what is expected of an answer. */
export function certified(known) {
  const [expected, bound] = [known.expected, known.bound].map((one) => (one <= 1 ? one.toFixed(2) : one.toFixed(0)));
  return mark(known.colour, t(known.colour), t("certificateHint", { metric: known.metric, expected, bound }));
}

/** A link that saves a file. */
export function download(blob, name, text) {
  return el("a.button", { href: URL.createObjectURL(blob), download: name, textContent: text });
}

/** Save a file at once. */
export function save(blob, name) {
  const link = download(blob, name, "");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A place to drop, paste or choose files; `take(files)` gets them. `camera`: also take a picture. */
export function drop({ word, accept, multiple = false, camera = false, take }) {
  const input = el("input.hidden", { type: "file", accept, multiple, wordLabel: word, tabIndex: -1 });
  const choose = el("button.quiet", { type: "button", word: "choose", onclick: () => input.click() });
  const zone = el("div.drop", { role: "group", wordLabel: word, tabIndex: 0 }, el("p", { word }), el("div.row", {}, choose), input);
  if (camera && matchMedia("(pointer: coarse)").matches) {
    const shot = el("input.hidden", { type: "file", accept, capture: "environment", wordLabel: "camera", tabIndex: -1 });
    shot.addEventListener("change", () => take([...shot.files]));
    choose.after(el("button.quiet", { type: "button", word: "camera", onclick: () => shot.click() }), shot);
  }
  const got = (files) => { if (files.length) take(multiple ? [...files] : [files[0]]); };
  input.addEventListener("change", () => { got(input.files); input.value = ""; });
  zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    got(event.dataTransfer.files);
  });
  zone.addEventListener("paste", (event) => { if (event.clipboardData.files.length) { event.preventDefault(); got(event.clipboardData.files); } });
  return zone;
}

/** A whole file as a data: URI. */
export function dataUri(file) {
  return new Promise((found, failed) => {
    const reader = new FileReader();
    reader.onload = () => found(reader.result);
    reader.onerror = () => failed(new Error(t("unreadable", { name: file.name })));
    reader.readAsDataURL(file);
  });
}

/** The base64 of a file. */
export const base64 = async (file) => (await dataUri(file)).replace(/^[^,]*,/, "");

/** The bytes that a base64 text holds. */
export const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));

/** Raise a sentence for a file of the wrong kind or beyond `most` bytes. */
export function checkFile(file, kind, most) {
  const name = file.name;
  if (!file.size) throw new Error(t("emptyFile", { name }));
  if (file.size > most) throw new Error(t("tooLarge", { name, size: megabytes(file.size), most: megabytes(most) }));
  if (kind && file.type && !file.type.startsWith(`${kind}/`) && !(kind === "audio" && file.type.startsWith("video/"))) {
    throw new Error(t(kind === "image" ? "notImage" : "notAudio", { name }));
  }
}

const megabytes = (size) => (size / 1_048_576).toFixed(1);
