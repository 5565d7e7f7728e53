// Describe: a picture or a recording in, words about it out.
import { chat } from "./api.js";
import { recorder } from "./audio.js";
import { base64, certified, checkFile, dataUri, drop, el, field, options, select } from "./dom.js";
import { t } from "./words.js";
import { work } from "./work.js";

export const describe = {
  id: "describe",
  shown: (state) => state.able("describe", "").length > 0,
  build(state) {
    const model = select([]);
    const prompt = el("input", { dir: "auto", value: "" });
    const shown = el("div.media");
    const answer = el("div.answer", { dir: "auto", ariaLive: "polite", hidden: true });
    const told = el("p.by", { hidden: true });
    let picture = null;
    let sound = null;

    const job = work("describeIt", async (signal) => {
      answer.textContent = "";
      answer.hidden = false;
      told.hidden = true;
      answer.ariaBusy = "true";
      const content = [];
      if (picture) content.push({ type: "image_url", image_url: { url: await dataUri(picture) } });
      if (sound) content.push({ type: "input_audio", input_audio: { data: await base64(sound), format: "wav" } });
      if (prompt.value.trim()) content.push({ type: "text", text: prompt.value });
      const body = { model: model.value, language: state.tag(state.model(model.value)), messages: [{ role: "user", content }] };
      const found = await chat(body, (piece) => answer.append(piece), signal);
      told.replaceChildren(t("by", { model: found.model }), found.certificate ? certified(found.certificate) : "");
      told.hidden = false;
      answer.ariaBusy = "false";
      return answer.textContent.trim() ? "" : t("emptyAnswer");
    }, { ready: () => { if (picture || sound) return true; job.tell(t("missingMedia"), "error"); return false; } });

    function show(one, kind) {
      job.tell("");
      try {
        const limits = state.service.limits;
        checkFile(one, kind, ((kind === "image" ? limits.max_image_body_bytes : limits.max_audio_body_bytes) * 0.74));
      } catch (error) { job.tell(error.message, "error"); return; }
      const url = URL.createObjectURL(one);
      shown.querySelector(kind === "image" ? "img" : "audio")?.remove();
      if (kind === "image") { picture = one; shown.append(el("img", { src: url, alt: one.name })); }
      else { sound = one; shown.append(el("audio", { src: url, controls: true, wordLabel: "recording" })); }
    }
    const pictures = drop({ word: "dropPicture", accept: "image/*", camera: true, take: ([one]) => show(one, "image") });
    const sounds = recorder({ word: "dropAudio", take: (one) => show(one, "audio"), fail: (text) => job.tell(text, "error") });
    document.addEventListener("paste", (event) => {
      const [one] = event.clipboardData?.files ?? [];
      if (one && !node.closest("[hidden]") && one.type.startsWith("image/") && !event.defaultPrevented) show(one, "image");
    });
    const media = () => {
      const found = state.model(model.value)?.media ?? [];
      pictures.hidden = !found.includes("image");
      sounds.hidden = !found.includes("audio");
      if (pictures.hidden) { picture = null; shown.querySelector("img")?.remove(); }
      if (sounds.hidden) { sound = null; shown.querySelector("audio")?.remove(); }
    };
    model.addEventListener("change", media);
    const node = el("div", {}, field("model", model), el("div.panes", {}, pictures, sounds), shown, field("question", prompt, "questionHint"), job.node, answer, told);
    return { node, refresh() { options(model, state.listed(state.able("describe", ""))); media(); } };
  },
};
