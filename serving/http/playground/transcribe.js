// Transcribe: a recording in, its words with their times out, and files for subtitles and annotation.
import { ask, askJson } from "./api.js";
import { recorder } from "./audio.js";
import { certified, checkFile, el, field, options, save, select } from "./dom.js";
import { t } from "./words.js";
import { work } from "./work.js";

const FORMATS = { text: "txt", srt: "srt", vtt: "vtt", eaf: "eaf", textgrid: "TextGrid" };
const PATH = "v1/audio/transcriptions";

export const transcribe = {
  id: "transcribe",
  shown: (state) => state.service.tasks.includes("transcribe"),
  build(state) {
    const model = select([]);
    const player = el("audio", { controls: true, wordLabel: "recording", hidden: true });
    const text = el("div.answer.words", { dir: "auto", tabIndex: 0, role: "group", wordLabel: "transcript", hidden: true });
    const told = el("p.by");
    const notes = el("ul.hint");
    const files = el("div.row", { hidden: true, role: "group", wordLabel: "downloads" });
    let file = null;
    let spans = [];

    const form = (format) => {
      const body = new FormData();
      const chosen = state.model(model.value);
      body.append("file", file);
      body.append("model", model.value);
      body.append("response_format", format);
      if (state.language && (state.tag(chosen) || !chosen?.parent)) body.append("language", state.language.id);
      body.append("allow_base", "true");
      return body;
    };

    const job = work("transcribeIt", async (signal) => {
      for (const one of [text, notes, told]) one.replaceChildren();
      files.hidden = true;
      const body = form("verbose_json");
      for (const one of ["segment", "word"]) body.append("timestamp_granularities[]", one);
      const found = await askJson(PATH, { body, signal });
      text.lang = found.language ?? "";
      text.hidden = false;
      spans = words(found);
      text.append(...spans.flatMap((one) => [one.node, " "]));
      told.replaceChildren(t("heard", { seconds: found.duration.toFixed(1) }), ...marks(found.segments));
      notes.append(...found.warnings.map((one) => el("li", { textContent: one })));
      files.hidden = false;
      return found.text.trim() ? "" : t("nothingHeard");
    }, { ready: () => { if (file) return true; job.tell(t("missingAudio"), "error"); return false; } });

    function words(found) {
      const timed = found.words?.length ? found.words.map((one) => [one.word.trim(), one]) : found.segments.map((one) => [one.text.trim(), one]);
      return timed.map(([shown, { start, end }]) => {
        const node = el("span", { textContent: shown });
        node.addEventListener("click", () => { player.currentTime = start; player.play(); });
        return { node, start, end };
      });
    }

    function follow() {
      const now = player.currentTime;
      for (const one of spans) one.node.classList.toggle("now", !player.paused && one.start <= now && now < one.end);
      if (!player.paused) requestAnimationFrame(follow);
    }
    for (const name of ["play", "pause", "ended", "seeked"]) player.addEventListener(name, follow);

    for (const [format, suffix] of Object.entries(FORMATS)) {
      const get = el("button.quiet", { type: "button", textContent: `.${suffix}` });
      get.addEventListener("click", async () => {
        get.disabled = true;
        job.tell(t("working"));
        try {
          const answer = await ask(PATH, { body: form(format) });
          save(await answer.blob(), `${file.name.replace(/\.[^.]*$/, "")}.${suffix}`);
          job.tell(t("saved", { suffix }));
        } catch (error) { job.tell(error.message, "error"); }
        get.disabled = false;
      });
      files.append(get);
    }

    function take(one) {
      try { checkFile(one, "audio", state.service.limits.max_audio_body_bytes * 0.98); } catch (error) { job.tell(error.message, "error"); return; }
      file = one;
      URL.revokeObjectURL(player.src);
      player.src = URL.createObjectURL(one);
      player.hidden = false;
      job.begin();
    }
    const zone = recorder({ word: "dropAudio", take, fail: (words_) => job.tell(words_, "error") });
    const node = el("div", {}, field("model", model), zone, player, job.node, text, told, notes, files);
    return { node, refresh: () => options(model, state.listed(state.able("transcribe"))) };
  },
};

/** One mark a colour that the segments have. */
const marks = (segments) => segments.filter((one) => one.certificate).map((one) => certified(one.certificate)).slice(0, 20);
