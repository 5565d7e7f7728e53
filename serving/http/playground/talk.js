// Talk: a recording in, its answer or its translation out, written and spoken.
import { ask, events } from "./api.js";
import { recorder } from "./audio.js";
import { bytes, checkFile, el, field, options, select } from "./dom.js";
import { soundView, voiceField } from "./speak.js";
import { languageName, t } from "./words.js";
import { work } from "./work.js";

export const talk = {
  id: "talk",
  shown: (state) => ["transcribe", "speak", "text"].every((one) => state.service.tasks.includes(one)),
  build(state) {
    const into = select([]);
    const { voice, fill } = voiceField((one) => state.models.some((base) => !base.parent && base.id === one.model));  // an adapter's comes with its language
    const player = el("audio", { controls: true, wordLabel: "recording", hidden: true });
    const turns = el("div.turns", { ariaLive: "polite" });
    const view = soundView();
    let file = null;

    const job = work("talkIt", async (signal) => {
      turns.replaceChildren();
      view.node.hidden = true;
      const body = new FormData();
      const fields = { file, language: state.language?.id, target: into.value, voice: voice.value, stream: "true", max_tokens: String(Math.min(96, state.service.limits.max_tokens)) };
      for (const [name, value] of Object.entries(fields)) if (value) body.append(name, value);
      const answer = await ask("v1/audio/dialogue", { body, signal });
      const said = el("p.turn.answered", { dir: "auto" });
      const parts = [];
      for await (const event of events(answer)) {
        if (event.type === "transcript.text.done") turns.append(el("p.turn.asked", { textContent: event.text || t("nothingHeard"), dir: "auto", lang: event.language ?? "" }), said);
        else if (event.type === "response.output_text.delta") said.append(event.delta);
        else if (event.type === "speech.audio.delta") parts.push(bytes(event.audio));
      }
      if (parts.length) await view.show(new Blob(parts, { type: "audio/mpeg" }), "answer.mp3");
      return parts.length ? "" : t("emptyAnswer");
    }, { ready: () => { if (file) return true; job.tell(t("missingAudio"), "error"); return false; } });

    function take(one) {
      try { checkFile(one, "audio", state.service.limits.max_audio_body_bytes * 0.98); } catch (error) { job.tell(error.message, "error"); return; }
      file = one;
      URL.revokeObjectURL(player.src);
      player.src = URL.createObjectURL(one);
      player.hidden = false;
      job.begin();
    }
    const zone = recorder({ word: "dropAudio", take, fail: (text) => job.tell(text, "error") });
    const node = el("div", {}, el("div.row.fields", {}, field("reply", into), field("voice", voice)), zone, player, job.node, turns, view.node);
    return {
      node,
      refresh() {
        const pairs = state.models.filter((one) => one.parent).flatMap((one) => one.pairs);
        const found = [...new Set(pairs.filter(([one]) => !state.language || one === state.language.id).map(([, other]) => other))];
        options(into, [["", t("ownLanguage")], ...found.map((tag) => [tag, t("intoLanguage", { language: languageName(tag) })])]);
        fill().catch((error) => job.tell(error.message, "error"));
      },
    };
  },
};
