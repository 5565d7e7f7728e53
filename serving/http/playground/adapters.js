// Adapters: what each was made of, under which licence, how good it is beside its base, its versions.
import { askJson } from "./api.js";
import { el, mark, select, svg } from "./dom.js";
import { interfaceLanguage, languageName, t } from "./words.js";

export const adapters = {
  id: "adapters",
  shown: (state) => served(state).length > 0,
  build(state) {
    const node = el("div.cards");
    return { node, refresh: () => node.replaceChildren(...served(state).map(card)) };
  },
};

const served = (state) => state.models.filter((one) => one.parent && (!state.language || one.language.includes(state.language.id)));

function card(model) {
  const aliases = Object.entries(model.aliases).map(([name, version]) => mark(name === "prod" ? "green" : "plain", `${name} → ${version}`));
  const body = el("div.body", {}, el("p.hint", { textContent: t("working") }));
  const versions = select(model.versions.map((one) => [`${model.root.split("@")[0]}@${one}`, t("version", { number: one })]), model.root);
  versions.ariaLabel = t("versions");
  const more = el("details", {}, el("summary", { word: "details" }), versions, body);
  async function fill() {
    try { body.replaceChildren(...details(await askJson(`v1/adapters/${versions.value}`), model)); } catch (error) { body.replaceChildren(el("p.error", { textContent: error.message })); }
  }
  versions.addEventListener("change", fill);
  more.addEventListener("toggle", () => { if (more.open) fill(); }, { once: true });
  const known = Object.entries(model.certificates).map(([tag, one]) => mark("plain", t("certificateOf", { language: languageName(tag), share: Math.round(100 * one.coverage) })));
  return el("article.card", {}, el("h3", { textContent: model.root }),
    el("p", { textContent: `${t(TASK_TABS[model.answers] ?? "adapters")} · ${model.language.map(languageName).join(", ")}` }),
    el("p.hint", { textContent: `${t("onBase", { base: model.parent })} · ${t("licence", { licence: model.licence })}` }),
    el("div.row", {}, ...aliases, ...known), more);
}

/** A task of the service -> the tab that does it. */
export const TASK_TABS = { text: "write", translate: "translate", describe: "describe", transcribe: "transcribe", speak: "speak", classify: "sort" };

function details(found, model) {
  const parts = [];
  const { data, training } = found;
  parts.push(el("h4", { word: "figures" }));
  const rows = found.metrics.filter((one) => one.value !== null);
  parts.push(rows.length ? figures(rows) : el("p.hint", { word: "noFigures" }));
  const curve = (training?.curve ?? []).filter(([, loss]) => loss !== null);
  if (curve.length > 1) parts.push(el("h4", { word: "learningCurve" }), plot(curve));
  parts.push(el("h4", { word: "data" }));
  parts.push(data ? el("p", { textContent: t("dataLine", { name: data.name, rows: data.rows.toLocaleString(interfaceLanguage()), groups: data.groups.toLocaleString(interfaceLanguage()) }) }) : el("p.hint", { word: "noData" }));
  if (data?.synthetic_rows) parts.push(el("p.hint", { textContent: t("synthetic", { rows: data.synthetic_rows }) }));
  if (found.attributions.length) parts.push(el("ul", {}, ...found.attributions.map((one) => el("li", { textContent: `${one.source} · ${one.licence} · ${one.rows}`, dir: "auto" }))));
  if (found.notes.length) parts.push(el("ul.hint", {}, ...found.notes.map((one) => el("li", { textContent: one, dir: "auto" }))));
  const created = new Date(found.created).toLocaleDateString(interfaceLanguage());
  parts.push(el("p.hint", { textContent: [t("made", { date: created }), training ? t("trained", { steps: training.steps, minutes: Math.max(1, Math.round(training.seconds / 60)) }) : ""].filter(Boolean).join(" · ") }));
  if (model.aliases.prod !== Number(found.id.split("@")[1])) parts.push(el("p.hint", {}, `${t("promote")} `, el("code", { textContent: `kauli adapters promote ${found.id} prod` })));
  return parts;
}

function figures(rows) {
  const sorted = [...rows].sort((one, other) => other.headline - one.headline);
  const head = el("tr", {}, ...["figure", "adapter", "base"].map((word) => el("th", { word, scope: "col" })));
  const body = sorted.map((one) => {
    const show = (value) => (value === null || value === undefined ? "–" : one.percent ? `${(100 * value).toFixed(1)} %` : value.toFixed(one.digits));
    const interval = one.interval?.every((end) => end !== null) ? ` (${one.interval.map(show).join(" – ")})` : "";
    const better = one.base !== null && one.better ? (one.better === "lower" ? one.value < one.base : one.value > one.base) : null;
    const value = el(better ? "td.better" : "td", { textContent: show(one.value) + interval });
    if (better !== null) value.append(el("span.hint", { textContent: ` ${t(better ? "betterThanBase" : "notBetter")}` }));
    return el("tr", {}, el("th", { textContent: one.label, scope: "row" }), value, el("td", { textContent: show(one.base) }));
  });
  return el("div.scroll", { tabIndex: 0, role: "group", wordLabel: "figures" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...body)));
}

/** The training loss over steps, as a line. */
function plot(curve) {
  const [width, height] = [320, 90];
  const steps = curve.map(([step]) => step);
  const losses = curve.map(([, loss]) => loss);
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const x = (step) => ((step - steps[0]) / (steps.at(-1) - steps[0] || 1)) * width;
  const y = (loss) => height - 4 - ((loss - low) / (high - low || 1)) * (height - 8);
  const points = curve.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
  const text = t("curveWords", { first: losses[0].toFixed(2), last: losses.at(-1).toFixed(2), steps: steps.at(-1) });
  return el("figure", {}, svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": text, class: "curve" }, svg("polyline", { points })), el("figcaption.hint", { textContent: text }));
}
