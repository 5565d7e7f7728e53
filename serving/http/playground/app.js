// The page: which languages and tasks the service has, the language picker, the tabs.
import { askJson, keepKey, key } from "./api.js";
import { el, options } from "./dom.js";
import { INTERFACES, interfaceLanguage, keep, languageName, loadWords, t, use } from "./words.js";
import { picker } from "./picker.js";
import { adapters, TASK_TABS } from "./adapters.js";
import { compare } from "./compare.js";
import { describe } from "./describe.js";
import { sort } from "./sort.js";
import { speak } from "./speak.js";
import { talk } from "./talk.js";
import { transcribe } from "./transcribe.js";
import { translate } from "./translate.js";
import { write } from "./write.js";

const TABS = [write, translate, describe, transcribe, speak, talk, sort, compare, adapters];
const $ = (id) => document.getElementById(id);
/** What all tabs know: the service, its models, the chosen language (null: any). */
const state = { service: null, models: [], language: null };
const built = new Map();
let chosen = null;

/** Models that do a task in the chosen language: adapters first, then bare bases of the kind `base`. */
state.able = (task, base = task) => {
  const served = state.models.filter((one) => one.parent && one.answers === task && speaks(one));
  return [...served, ...state.models.filter((one) => !one.parent && one.task === base)];
};
/** The name of a model in a list: the language of an adapter, or that it is a base. */
state.called = (model) => `${model.id} · ${model.parent ? model.language.map(languageName).join(", ") : t("base")}`;
/** The chosen language as an adapter takes it; undefined where it has none of it. */
state.tag = (model) => (model?.parent && state.language && speaks(model) ? state.language.id : undefined);
state.listed = (models) => models.map((one) => [one.id, state.called(one)]);
state.model = (id) => state.models.find((one) => one.id === id);

const speaks = (model) => !state.language || model.language.includes(state.language.id);

async function load() {
  try {
    const [service, models] = await Promise.all([askJson("v1/service"), askJson("v1/models")]);
    Object.assign(state, { service, models: models.data });
    tell("");
    $("keyForm").hidden = true;
  } catch (error) {
    tell(error.message, "error");
    return false;
  }
  return true;
}

function tell(text, kind = "") {
  $("notice").textContent = text;
  $("notice").className = kind;
}

function openKey() {
  $("keyForm").hidden = false;
  $("keyButton").setAttribute("aria-expanded", "true");
  $("key").focus();
}

function show() {
  const shown = TABS.filter((one) => one.shown(state));
  if (!shown.includes(chosen)) chosen = shown.find((one) => `#${one.id}` === location.hash) ?? shown[0];
  $("tabs").replaceChildren(...shown.map(tabOf));
  $("able").textContent = state.language
    ? t("ableIn", { language: state.language.name, tasks: state.language.tasks.filter((one) => TASK_TABS[one]).map((one) => t(TASK_TABS[one])).join(" · ") })
    : t(state.service.languages.length ? "ableAll" : "ableNone", { count: state.service.languages.length });
  open(chosen);
}

function tabOf(tab) {
  const node = el(`button.tab#tab-${tab.id}`, { type: "button", role: "tab", word: tab.id, "aria-controls": `panel-${tab.id}` });
  node.addEventListener("click", () => { open(tab); history.replaceState(null, "", `#${tab.id}`); });
  return node;
}

function open(tab) {
  chosen = tab;
  if (tab && !built.has(tab)) {
    const content = tab.build(state);
    const panel = el(`section.panel#panel-${tab.id}`, { role: "tabpanel", "aria-labelledby": `tab-${tab.id}`, tabIndex: 0 }, el("p.lead", { word: `${tab.id}Lead` }), content.node);
    built.set(tab, { panel, refresh: content.refresh });
    $("panels").append(panel);
  }
  for (const [one, { panel }] of built) panel.hidden = one !== tab;
  for (const node of $("tabs").children) {
    const own = node.id === `tab-${tab?.id}`;
    node.setAttribute("aria-selected", String(own));
    node.tabIndex = own ? 0 : -1;
    if (own) node.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  built.get(tab)?.refresh();
}

$("tabs").addEventListener("keydown", (event) => {
  const all = [...$("tabs").children];
  const at = all.indexOf(document.activeElement);
  const ahead = document.documentElement.dir === "rtl" ? "ArrowLeft" : "ArrowRight";
  const step = { [ahead]: 1, [ahead === "ArrowLeft" ? "ArrowRight" : "ArrowLeft"]: -1 }[event.key];
  const next = event.key === "Home" ? 0 : event.key === "End" ? all.length - 1 : step && at >= 0 ? (at + step + all.length) % all.length : null;
  if (next === null || next === undefined) return;
  event.preventDefault();
  all[next].focus();
  all[next].click();
});

document.addEventListener("kauli-key", openKey);
$("keyButton").addEventListener("click", () => {
  $("keyForm").hidden = !$("keyForm").hidden;
  $("keyButton").setAttribute("aria-expanded", String(!$("keyForm").hidden));
  if (!$("keyForm").hidden) $("key").focus();
});
$("keyForm").addEventListener("submit", async (event) => {
  event.preventDefault();
  keepKey($("key").value.trim());
  if (await load()) start();
});

let language = null;
function start() {
  language ??= picker($("language"), $("languages"), (found) => { state.language = found; show(); });
  language.fill(state.service.languages);
  show();
}

await loadWords();
options($("interface"), Object.entries(INTERFACES), interfaceLanguage());
$("interface").addEventListener("change", () => {
  keep($("interface").value);
  use($("interface").value);
  if (state.service) start();
});
$("key").value = key();
if (await load()) start();
performance.mark("kauli-ready");
document.documentElement.dataset.ready = "yes";
