// Write: a prompt, examples before it, an answer that streams in.
import { chat } from "./api.js";
import { certified, el, field, options, select } from "./dom.js";
import { t } from "./words.js";
import { work } from "./work.js";

export const write = {
  id: "write",
  shown: (state) => state.service.tasks.includes("text"),
  build(state) {
    const model = select([]);
    const prompt = el("textarea", { rows: 4, dir: "auto" });
    const most = el("input", { type: "number", min: 1, max: state.service.limits.max_tokens, value: Math.min(128, state.service.limits.max_tokens) });
    const rows = el("div.rows");
    const answer = el("div.answer", { dir: "auto", ariaLive: "polite", hidden: true });
    const told = el("p.by", { hidden: true });
    const addRow = () => rows.append(exampleRow());
    const add = el("button.quiet", { type: "button", word: "addExample", onclick: () => { addRow(); rows.lastChild.querySelector("textarea").focus(); } });

    const job = work("ask", async (signal) => {
      answer.textContent = "";
      answer.hidden = false;
      told.hidden = true;
      answer.ariaBusy = "true";
      const messages = [...examplesOf(rows), { role: "user", content: prompt.value }];
      const chosen = state.model(model.value);
      const body = { model: model.value, language: state.tag(chosen), max_tokens: Number(most.value), messages };
      const found = await chat(body, (piece) => answer.append(piece), signal);
      told.replaceChildren(t("by", { model: found.model }), found.certificate ? certified(found.certificate) : "");
      told.hidden = false;
      answer.ariaBusy = "false";
      if (!answer.textContent.trim()) return t("emptyAnswer");
      return found.finish === "length" ? t("cut") : "";
    }, { ready: () => filled(prompt, job) });
    prompt.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) job.begin(); });

    const node = el("div", {},
      field("prompt", prompt, "sendHint"),
      el("details", {}, el("summary", { word: "examples" }), el("p.hint", { word: "examplesHint" }), rows, add),
      el("div.row.fields", {}, field("model", model), field("most", most)),
      job.node, answer, told);
    return { node, refresh: () => options(model, state.listed(state.able("text"))) };
  },
};

/** Whether a text is there; else its field is asked for. */
export function filled(input, job) {
  if (input.value.trim()) return true;
  job.tell(t("missingText"), "error");
  input.focus();
  return false;
}

function exampleRow() {
  const row = el("div.example", {}, ...["exampleIn", "exampleOut"].map((word) => el("textarea", { rows: 1, dir: "auto", wordLabel: word, wordPlaceholder: word })));
  row.append(el("button.quiet", { type: "button", word: "remove", onclick: () => row.remove() }));
  return row;
}

function examplesOf(rows) {
  const found = [];
  for (const row of rows.children) {
    const [asked, answered] = [...row.querySelectorAll("textarea")].map((one) => one.value.trim());
    if (asked && answered) found.push({ role: "user", content: asked }, { role: "assistant", content: answered });
  }
  return found;
}
