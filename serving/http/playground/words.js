// The texts of the interface, from one table: words.json has each in every language.
export const INTERFACES = { en: "English", sw: "Kiswahili", am: "አማርኛ", fr: "Français", ar: "العربية" };
const RIGHT_TO_LEFT = new Set(["ar"]);
let table = {};
let current = "en";

/** The text of a key, with what stands in {braces} filled in. */
export function t(key, values = {}) {
  const row = table[key];
  if (!row) throw new Error(`no text for '${key}'`);
  return row[current].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** The tag of the interface's language. */
export const interfaceLanguage = () => current;

/** Read the table, and choose the language: the stored one, else the browser's, else English. */
export async function loadWords() {
  const response = await fetch("playground/words.json");
  table = await response.json();
  const wanted = [stored(), ...navigator.languages.map((one) => one.split("-")[0])];
  use(wanted.find((one) => one in INTERFACES) ?? "en");
}

/** Show the interface in a language from now on. */
export function use(tag) {
  current = tag;
  document.documentElement.lang = tag;
  document.documentElement.dir = RIGHT_TO_LEFT.has(tag) ? "rtl" : "ltr";
  for (const node of document.querySelectorAll("[data-word]")) node.textContent = t(node.dataset.word);
  for (const node of document.querySelectorAll("[data-word-label]")) node.setAttribute("aria-label", t(node.dataset.wordLabel));
  for (const node of document.querySelectorAll("[data-word-placeholder]")) node.placeholder = t(node.dataset.wordPlaceholder);
}

/** Keep the choice for the next visit. */
export function keep(tag) {
  try { localStorage.setItem("kauli.interface", tag); } catch { /* a browser that stores nothing */ }
}

function stored() {
  try { return localStorage.getItem("kauli.interface"); } catch { return null; }
}

/** A language's name in the language of the interface; its tag where the browser has none. */
export function languageName(tag) {
  try { return new Intl.DisplayNames([current], { type: "language" }).of(tag); } catch { return tag; }
}
