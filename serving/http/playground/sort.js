// Sort: pictures or texts into groups, by a few examples of each in the service's shared space, or by a trained head.
import { askJson } from "./api.js";
import { checkFile, dataUri, drop, el, field, options, select } from "./dom.js";
import { t } from "./words.js";
import { work } from "./work.js";

const SHARPNESS = 20;
/** Of the shares: how much nearer the nearest group must be to get nearly all. */

export const sort = {
  id: "sort",
  shown: (state) => state.service.tasks.includes("embed") || heads(state).length > 0,
  build(state) {
    const how = select([]);
    const groups = el("div.groups");
    const results = el("ol.results", { ariaLive: "polite" });
    const text = el("input", { dir: "auto" });
    const add = el("button.quiet", { type: "button", word: "addGroup", onclick: () => groups.insertBefore(group(), add) });
    groups.append(group(), group(), add);

    const job = work("sortText", async (signal) => { await place([text.value], [text.value], signal); text.value = ""; }, {
      ready: () => { if (text.value.trim()) return true; job.tell(t("missingText"), "error"); text.focus(); return false; },
    });
    const pictures = [];
    const images = work("sortPictures", async (signal) => {
      job.tell("");
      const files = pictures.splice(0);
      const uris = [];
      for (const one of files) { checkFile(one, "image", state.service.limits.max_image_body_bytes * 0.74); uris.push(await dataUri(one)); }
      for (let at = 0; at < files.length; at++) await place([files[at]], [uris[at]], signal);
    });
    images.start.remove();
    const zone = drop({ word: "dropPictures", accept: "image/*", multiple: true, take: (files) => { pictures.push(...files); images.begin(); } });

    async function place(items, inputs, signal) {
      const ranked = how.value ? await byHead(inputs, signal) : await byGroups(inputs, signal);
      items.forEach((item, at) => results.prepend(shown(item, ranked[at])));
    }

    async function byHead(inputs, signal) {
      const found = await askJson("v1/classify", { body: { model: how.value, input: inputs }, signal });
      return found.data.map((one) => one.probabilities.map((row) => [row.label, row.probability]));
    }

    async function byGroups(inputs, signal) {
      const named = [...groups.querySelectorAll(".group")].map((one) => one.group).filter((one) => one.name.value.trim() || one.vectors.length);
      if (named.length < 2) throw new Error(t("twoGroups"));
      const bare = named.filter((one) => !one.vectors.length);
      const found = await embed([...inputs, ...bare.map((one) => one.name.value)], signal);
      const centres = named.map((one) => mean(one.vectors.length ? one.vectors : [found[inputs.length + bare.indexOf(one)]]));
      return found.slice(0, inputs.length).map((vector) => {
        const weights = centres.map((centre) => Math.exp(SHARPNESS * dot(vector, centre)));
        const total = weights.reduce((sum, one) => sum + one, 0);
        return named.map((one, at) => [one.name.value.trim() || "?", weights[at] / total]).sort((one, other) => other[1] - one[1]);
      });
    }

    async function embed(inputs, signal) {
      const found = await askJson("v1/embeddings", { body: { model: "embed", input: inputs }, signal });
      return found.data.map((one) => one.embedding);
    }

    function group() {
      const name = el("input", { dir: "auto", wordLabel: "groupName", wordPlaceholder: "groupName" });
      const items = el("ul.items");
      const example = el("input", { dir: "auto", wordLabel: "addText", wordPlaceholder: "addText" });
      const status = el("p.hint", { role: "status" });
      const own = { name, vectors: [] };
      const learn = async (item, input) => {
        status.textContent = t("working");
        try {
          const [vector] = await embed([input]);
          own.vectors.push(vector);
          const row = el("li", {}, view(item), el("button.quiet.small", { type: "button", word: "remove", onclick() { own.vectors.splice(own.vectors.indexOf(vector), 1); row.remove(); count(); } }));
          items.append(row);
          count();
        } catch (error) { status.textContent = error.message; }
      };
      const count = () => { status.textContent = t("examplesCount", { count: own.vectors.length }); };
      example.addEventListener("keydown", (event) => { if (event.key === "Enter" && example.value.trim()) { learn(example.value, example.value); example.value = ""; } });
      const zone_ = drop({ word: "dropExamples", accept: "image/*", multiple: true, async take(files) {
        for (const one of files) {
          try { checkFile(one, "image", state.service.limits.max_image_body_bytes * 0.74); } catch (error) { status.textContent = error.message; continue; }
          await learn(one, await dataUri(one));
        }
      } });
      const node_ = el("section.group", {}, name, zone_, example, items, status,
        el("button.quiet.small", { type: "button", word: "removeGroup", onclick: () => node_.remove() }));
      node_.group = own;
      return node_;
    }

    const node = el("div", {}, field("sortBy", how), groups, el("h3", { word: "tryIt" }), el("div.panes", {},
      el("section.pane", {}, field("text", text), job.node), el("section.pane", {}, zone, images.node)), results);
    const kinds = () => { groups.hidden = Boolean(how.value); };
    how.addEventListener("change", kinds);
    text.addEventListener("keydown", (event) => { if (event.key === "Enter") job.begin(); });
    return {
      node,
      refresh() {
        const own = state.service.tasks.includes("embed") ? [["", t("ownGroups")]] : [];
        options(how, [...own, ...heads(state).map((one) => [one.id, state.called(one)])]);
        kinds();
      },
    };
  },
};

const heads = (state) => state.able("classify", "");

/** A picture or a text as it is listed. */
function view(item) {
  if (typeof item === "string") return el("span", { textContent: item, dir: "auto" });
  return el("img", { src: URL.createObjectURL(item), alt: item.name });
}

/** An item with the shares of its groups as bars. */
function shown(item, ranked) {
  return el("li.result", {}, view(item), el("dl", {}, ...ranked.slice(0, 5).flatMap(([name, share]) => {
    const meter = el("meter", { min: 0, max: 1, value: share, ariaLabel: name });
    return [el("dt", { textContent: name, dir: "auto" }), el("dd", {}, meter, `${Math.round(100 * share)} %`)];
  })));
}

const dot = (one, other) => one.reduce((sum, value, at) => sum + value * other[at], 0);

function mean(vectors) {
  const sum = vectors[0].map((_, at) => vectors.reduce((total, one) => total + one[at], 0));
  const length = Math.hypot(...sum) || 1;
  return sum.map((one) => one / length);
}
