// Work that takes a while: it shows that it goes on, can be stopped, tells errors, and survives a restart.
import { Lost, returned } from "./api.js";
import { el } from "./dom.js";
import { t } from "./words.js";

/**
 * A button that starts `run(signal, tell)`, one that stops it, and the line that tells how it goes.
 * `run` returns what to tell at the end. After a lost connection it waits for the service and runs once more.
 */
export function work(word, run, { ready = () => true } = {}) {
  const status = el("p.status", { role: "status", ariaLive: "polite" });
  const bar = el("progress", { hidden: true, wordLabel: "busy" });
  const start = el("button.primary", { type: "button", word });
  const stop = el("button.quiet", { type: "button", word: "stop", hidden: true });
  const node = el("div.work", {}, el("div.row", {}, start, stop, bar), status);
  let controller = null;

  let waiting = false;
  const tell = (text, kind = "") => { status.textContent = text; status.className = `status ${kind}`; };
  const busy = (on) => {
    start.hidden = on;
    stop.hidden = bar.hidden = !on;
    node.setAttribute("aria-busy", String(on));
  };

  async function begin() {
    if (controller || !ready()) return;
    controller = new AbortController();
    const focused = document.activeElement === start;
    busy(true);
    if (focused) stop.focus();
    const began = performance.now();
    tell(t("working"));
    const clock = setInterval(() => { if (!waiting) tell(t("workingFor", { seconds: Math.round((performance.now() - began) / 1000) })); }, 5000);
    try {
      try {
        tell((await run(controller.signal, tell)) ?? "");
      } catch (error) {
        if (!(error instanceof Lost)) throw error;
        tell(t("reconnecting"), "warning");
        waiting = true;
        await returned(controller.signal);
        waiting = false;
        tell(t("again"));
        tell((await run(controller.signal, tell)) ?? "");
      }
    } catch (error) {
      tell(error.name === "AbortError" ? t("stopped") : error.message || t("failed"), error.name === "AbortError" ? "" : "error");
    } finally {
      clearInterval(clock);
      waiting = false;
      controller = null;
      const back = document.activeElement === stop;
      busy(false);
      if (back) start.focus();
    }
  }
  start.addEventListener("click", begin);
  stop.addEventListener("click", () => controller?.abort());
  return { node, begin, tell, start, stop: () => controller?.abort() };
}
