// Translate: texts in two panes or a document in its own format; each segment marked, and confirmed with one click.
import { askJson } from "./api.js";
import { base64, bytes, certified, checkFile, download, drop, el, field, mark, options, select } from "./dom.js";
import { languageName, t } from "./words.js";
import { work } from "./work.js";
import { filled } from "./write.js";

const MARKS = { exact: "green", fuzzy: "yellow", drafted: "plain", red: "red" };
const SHOWN = 300;
/** Of a document's segments, on the page; the file has them all. */

export const translate = {
  id: "translate",
  shown: (state) => pairsOf(state).length > 0,
  build(state) {
    const [source, target] = [select([]), select([])];
    const memory = el("input", { value: "default", autocapitalize: "off", spellcheck: false });
    const text = el("textarea", { rows: 8, dir: "auto" });
    const list = el("ol.segments");
    const summary = el("p.by");
    const file = el("div.row");
    const remembers = state.service.workers.includes("memory");
    const asked = () => ({ source: source.value, target: target.value });

    async function memories() {
      if (!remembers || !memory.value.trim()) return [];
      const held = await askJson("v1/memory");
      return held.data.some((one) => one.id === memory.value.trim()) ? [memory.value.trim()] : [];
    }

    const job = work("translateText", async (signal) => {
      clear();
      const lines = text.value.split("\n").map((one) => one.trim()).filter(Boolean);
      const most = state.service.limits.max_inputs;
      for (let at = 0; at < lines.length; at += most) {
        const part = lines.slice(at, at + most);
        const found = await askJson("v1/translate", { body: { ...asked(), text: part, memory: await memories() }, signal });
        found.translations.forEach((one, place) => list.append(segment(part[place], one)));
        summary.textContent = t("by", { model: found.model });
      }
    }, { ready: () => filled(text, job) });

    let document_ = null;
    const papers = work("translateDocument", async (signal) => {
      clear();
      checkFile(document_, "", (state.service.limits.max_body_bytes * 3) / 4);
      const body = { ...asked(), document: { name: document_.name, content: await base64(document_) }, memory: await memories() };
      const found = await askJson("v1/translate", { body, signal });
      list.append(...found.segments.slice(0, SHOWN).map((one) => segment(one.source, one)));
      const marks = Object.entries(found.marks).filter(([, count]) => count).map(([name, count]) => `${t(name)}: ${count}`).join(" · ");
      summary.textContent = [t("by", { model: found.model }), marks, found.certificate?.doubt].filter(Boolean).join(" · ");
      file.replaceChildren(download(new Blob([bytes(found.document.content)]), translated(found.document.name, target.value), t("downloadDocument")));
      return found.segments.length > SHOWN ? t("firstSegments", { shown: SHOWN, count: found.segments.length }) : t("documentDone", { count: found.segments.length });
    });
    const zone = drop({ word: "dropDocument", take: ([one]) => { document_ = one; papers.begin(); } });
    papers.start.remove();

    function clear() {
      list.replaceChildren();
      file.replaceChildren();
      summary.textContent = "";
    }

    function segment(from, draft) {
      const edited = el("textarea", { value: draft.text, rows: 1, dir: "auto", lang: target.value, wordLabel: "translation" });
      const note = el("span.hint", { textContent: draft.reasons.join("; "), dir: "auto" });
      const known = draft.certificate ? certified(draft.certificate) : mark(MARKS[draft.mark], t(draft.mark));
      const match = draft.score === null ? null : el("span.hint", { textContent: t("match", { score: Math.round(draft.score) }) });
      const similar = draft.similar && draft.mark !== "exact" ? el("p.hint", { textContent: t("similarPair", draft.similar), dir: "auto" }) : null;
      const confirm = el("button.quiet", { type: "button", word: "confirm", hidden: !remembers });
      const foot = el("div.row", {}, known, match, confirm, note);
      confirm.addEventListener("click", async () => {
        confirm.disabled = true;
        try {
          const name = memory.value.trim() || "default";
          await askJson("v1/memory", { body: { memory: name, ...asked(), pairs: [{ source: from, target: edited.value }] } });
          note.textContent = t("confirmed", { memory: name });
          known.replaceWith(mark("green", t("inMemory")));
        } catch (error) {
          note.textContent = error.message;
          confirm.disabled = false;
        }
      });
      edited.addEventListener("input", () => { confirm.disabled = false; grow(edited); });
      requestAnimationFrame(() => grow(edited));
      return el("li.segment", {}, el("p", { textContent: from, dir: "auto", lang: source.value }), edited, foot, similar);
    }

    function targets() {
      const found = [...new Set(pairsOf(state).filter(([one]) => one === source.value).map(([, other]) => other))];
      const wanted = found.includes(state.language?.id) ? state.language.id : target.value;
      options(target, found.map((tag) => [tag, languageName(tag)]), wanted);
      text.lang = source.value;
    }
    source.addEventListener("change", targets);

    const swap = el("button.quiet", { type: "button", word: "swap", onclick() {
      const [from, to] = [source.value, target.value];
      if (!pairsOf(state).some(([one, other]) => one === to && other === from)) return;
      source.value = to;
      targets();
      target.value = from;
    } });
    const node = el("div", {},
      el("div.row.fields", {}, field("from", source), swap, field("to", target), ...(remembers ? [field("memory", memory)] : [])),
      el("div.panes", {},
        el("section.pane", {}, field("text", text, "linesHint"), job.node, zone, papers.node),
        el("section.pane", {}, el("h3", { word: "translations" }), summary, file, list)));
    return {
      node,
      refresh() {
        const found = [...new Set(pairsOf(state).map(([one]) => one))];
        const into = pairsOf(state).find(([, other]) => other === state.language?.id)?.[0];
        options(source, found.map((tag) => [tag, languageName(tag)]), found.includes(source.value) && source.value !== state.language?.id ? source.value : into);
        targets();
      },
    };
  },
};

/** The pairs of languages that are translated, with the chosen language in them. */
function pairsOf(state) {
  const found = state.models.filter((one) => one.parent).flatMap((one) => one.pairs);
  return found.filter((pair) => !state.language || pair.includes(state.language.id));
}

const translated = (name, tag) => name.replace(/(\.[^.]*)?$/, (suffix) => `.${tag}${suffix}`);

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}
