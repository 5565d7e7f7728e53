// Speak: a text in, speech out, with its waveform and spectrogram.
import { ask, askJson, read } from "./api.js";
import { decoded, drawSpectrogram, drawWaveform } from "./audio.js";
import { download, el, field, options, select } from "./dom.js";
import { languageName, t } from "./words.js";
import { work } from "./work.js";
import { filled } from "./write.js";

/** A player with the two pictures of a sound; `show(blob, name)` fills it. */
export function soundView() {
  const player = el("audio", { controls: true, wordLabel: "speech" });
  const wave = el("canvas.wave", { height: 72, role: "img", wordLabel: "waveform" });
  const frequencies = el("canvas.frequencies", { height: 128, role: "img", wordLabel: "spectrogram" });
  const files = el("div.row");
  const node = el("div.sound", { hidden: true }, player, wave, frequencies, files);
  return {
    node,
    async show(blob, name) {
      URL.revokeObjectURL(player.src);
      player.src = URL.createObjectURL(blob);
      node.hidden = false;
      files.replaceChildren(download(blob, name, t("download")));
      const sound = await decoded(blob, 24_000);
      drawWaveform(wave, sound);
      drawSpectrogram(frequencies, sound);
      player.play().catch(() => { /* a browser that waits for a click */ });
      return sound.duration;
    },
  };
}

/** The field of voices, filled from the service; `wanted(voice)` says which are offered. */
export function voiceField(wanted = () => true) {
  const voice = select([]);
  let known = false;
  return {
    voice,
    async fill() {
      if (known) return;
      known = true;
      const found = await askJson("v1/audio/voices");
      const voices = found.voices.filter(wanted);
      options(voice, [["", t("anyVoice")]].concat(voices.map((one) => [one.id, one.language === "mul" ? one.id : `${one.id} · ${languageName(one.language)}`])));
      voice.title = voices.map((one) => `${one.id}: ${one.licence}. ${one.consent}`).join("\n");
    },
  };
}

export const speak = {
  id: "speak",
  shown: (state) => state.service.tasks.includes("speak"),
  build(state) {
    const text = el("textarea", { rows: 4, dir: "auto", maxLength: state.service.limits.max_speech_characters });
    const { voice, fill } = voiceField();
    const speed = el("input", { type: "range", min: 0.5, max: 2, step: 0.05, value: 1 });
    const shown = el("output", { textContent: "1×" });
    speed.addEventListener("input", () => { shown.textContent = `${Number(speed.value)}×`; });
    const slider = field("speed", speed);
    speed.after(shown);
    const view = soundView();
    const told = el("p.by");

    const job = work("speakIt", async (signal) => {
      const body = { model: "speak", input: text.value, voice: voice.value || undefined, speed: Number(speed.value), language: state.language?.id, response_format: "wav" };
      const answer = await ask("v1/audio/speech", { body, signal });
      const seconds = await view.show(await read(answer.blob()), "speech.wav");
      const [said, tag, unread] = ["X-Kauli-Voice", "X-Kauli-Language", "X-Kauli-Unread"].map((one) => decodeURIComponent(answer.headers.get(one) ?? ""));
      told.textContent = [t("spoken", { voice: said, language: languageName(tag), seconds: seconds.toFixed(1) }), unread ? t("unread", { letters: unread }) : ""].filter(Boolean).join(" ");
    }, { ready: () => filled(text, job) });

    const node = el("div", {}, field("text", text), el("div.row.fields", {}, field("voice", voice), slider), job.node, view.node, told);
    return { node, refresh() { text.lang = state.language?.id ?? ""; fill().catch((error) => job.tell(error.message, "error")); } };
  },
};
