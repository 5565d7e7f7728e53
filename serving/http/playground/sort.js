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
    const placed = [];
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
      if (how.value) {
        const found = await askJson("v1/classify", { body: { model: how.value, input: inputs }, signal });
        found.data.forEach((one, at) => results.prepend(shown(items[at], one.probabilities.map((row) => [row.label, row.probability]))));
        return;
      }
      if (named().length < 2) throw new Error(t("twoGroups"));
      const vectors = await embed(inputs, signal);
      items.forEach((item, at) => placed.unshift({ item, vector: vectors[at], node: null }));
      await again();
    }

    const named = () => [...groups.querySelectorAll(".group")].map((one) => one.group).filter((one) => one.name.value.trim() || one.vectors.length);

    /** Sort all that was placed by the groups as they are now. */
    async function again() {
      const found = named();
      if (found.length < 2 || !placed.length) return;
      for (const one of found) if (!one.vectors.length && one.known !== one.name.value) [one.own, one.known] = [(await embed([one.name.value]))[0], one.name.value];
      const centres = found.map((one) => mean(one.vectors.length ? one.vectors : [one.own]));
      for (const one of placed) {
        const weights = centres.map((centre) => Math.exp(SHARPNESS * dot(one.vector, centre)));
        const total = weights.reduce((sum, weight) => sum + weight, 0);
        const ranked = found.map((group_, at) => [group_.name.value.trim() || "?", weights[at] / total]).sort((first, second) => second[1] - first[1]);
        const node_ = shown(one.item, ranked);
        if (one.node) one.node.replaceWith(node_); else results.prepend(node_);
        one.node = node_;
      }
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
      const own = { name, vectors: [], own: null, known: null };
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
      const changed = () => again().catch((error) => { status.textContent = error.message; });
      const count = () => { status.textContent = t("examplesCount", { count: own.vectors.length }); changed(); };
      name.addEventListener("change", changed);
      example.addEventListener("keydown", (event) => { if (event.key === "Enter" && example.value.trim()) { learn(example.value, example.value); example.value = ""; } });
      const zone_ = drop({ word: "dropExamples", accept: "image/*", multiple: true, async take(files) {
        for (const one of files) {
          try { checkFile(one, "image", state.service.limits.max_image_body_bytes * 0.74); } catch (error) { status.textContent = error.message; continue; }
          await learn(one, await dataUri(one));
        }
      } });
      const node_ = el("section.group", {}, name, zone_, example, items, status,
        el("button.quiet.small", { type: "button", word: "removeGroup", onclick() { node_.remove(); changed(); } }));
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
