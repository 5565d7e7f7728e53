// The searchable list of languages, by their own names: a combobox with a list, as ARIA describes it.
import { el } from "./dom.js";
import { languageName, t } from "./words.js";

/** Make `input` and `list` a picker; `choose(language or null)` is told what was chosen. */
export function picker(input, list, choose) {
  let languages = [];
  let shown = [];
  let active = -1;
  let current = null;

  const words = (one) => (one ? `${one.name} ${one.english} ${languageName(one.id)} ${one.id}` : t("anyLanguage"));
  const plain = (text) => text.toLowerCase().normalize("NFD").replace(/\p{M}/gu, "");
  const title = (one) => (one ? one.name : t("anyLanguage"));

  function open(query = "") {
    const wanted = plain(query.trim());
    shown = [null, ...languages].filter((one) => (wanted ? one && plain(words(one)).includes(wanted) : true));
    active = shown.findIndex((one) => one?.id === current?.id);
    list.replaceChildren(...shown.map((one, at) => {
      const other = one ? languageName(one.id) : "";
      const node = el(`li#language-${at}`, { role: "option", "aria-selected": String(one?.id === current?.id) },
        el("span.own", { textContent: title(one), lang: one?.id ?? "", dir: "auto" }),
        other && other !== one.name ? el("span.other", { textContent: other, dir: "auto" }) : null,
        one ? el("span.tag", { textContent: one.id }) : null);
      node.addEventListener("pointerdown", (event) => { event.preventDefault(); take(at); });
      return node;
    }));
    if (!shown.length) list.append(el("li.none", { role: "option", ariaDisabled: "true", "aria-selected": "false", textContent: t("noLanguage") }));
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    point();
  }

  function close() {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
    input.value = title(current);
  }

  function point() {
    [...list.children].forEach((node, at) => node.classList.toggle("active", at === active));
    if (active >= 0) {
      input.setAttribute("aria-activedescendant", `language-${active}`);
      list.children[active]?.scrollIntoView({ block: "nearest" });
    }
  }

  function take(at) {
    if (at < 0 || at >= shown.length) return;
    current = shown[at];
    close();
    choose(current);
  }

  input.addEventListener("focus", () => { input.select(); });
  input.addEventListener("click", () => { if (list.hidden) open(); });
  input.addEventListener("input", () => { open(input.value); active = shown.length ? 0 : -1; point(); });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const closed = list.hidden;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (closed) { open(); return; }
      active = (active + (event.key === "ArrowDown" ? 1 : -1) + shown.length) % shown.length;
      point();
    } else if (event.key === "Enter" && !closed) {
      event.preventDefault();
      take(active);
    } else if (event.key === "Escape" && !closed) close();
  });

  return {
    /** The languages that the service has now; what was chosen stays chosen where it is among them. */
    fill(found) {
      languages = [...found].sort((one, other) => one.name.localeCompare(other.name));
      current = languages.find((one) => one.id === current?.id) ?? null;
      close();
      choose(current);
    },
  };
}
