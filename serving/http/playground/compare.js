// Compare: two models answer one prompt side by side; which is which is told after the vote.
import { chat } from "./api.js";
import { el, field, options, select } from "./dom.js";
import { t } from "./words.js";
import { work } from "./work.js";
import { filled } from "./write.js";

export const compare = {
  id: "compare",
  shown: (state) => state.service.tasks.includes("text") && state.able("text").length > 1,
  build(state) {
    const [first, second] = [select([]), select([])];
    const prompt = el("textarea", { rows: 3, dir: "auto" });
    const panes = ["A", "B"].map((name) => {
      const text = el("div.answer", { dir: "auto" });
      const who = el("p.by");
      return { text, who, node: el("section.pane", {}, el("h3", { textContent: name }), text, who) };
    });
    const both = el("div.panes", { hidden: true }, ...panes.map((one) => one.node));
    const votes = el("div.row.votes", { hidden: true, role: "group", wordLabel: "vote" });
    const tally = el("p.hint", { ariaLive: "polite" });
    const counts = new Map();
    let order = [];

    const job = work("askBoth", async (signal) => {
      order = Math.random() < 0.5 ? [first.value, second.value] : [second.value, first.value];
      both.hidden = false;
      votes.hidden = true;
      for (const one of panes) { one.text.textContent = ""; one.who.textContent = ""; }
      const messages = [{ role: "user", content: prompt.value }];
      await Promise.all(panes.map((pane, at) => chat(
        { model: order[at], language: state.tag(state.model(order[at])), max_tokens: Math.min(128, state.service.limits.max_tokens), messages },
        (piece) => pane.text.append(piece), signal)));
      votes.hidden = false;
      return t("voteNow");
    }, { ready: () => filled(prompt, job) && differ() });

    function differ() {
      if (first.value !== second.value) return true;
      job.tell(t("sameModels"), "error");
      return false;
    }

    function vote(at) {
      const winner = at === null ? null : order[at];
      const name = winner ?? t("same");
      counts.set(name, (counts.get(name) ?? 0) + 1);
      panes.forEach((pane, place) => { pane.who.textContent = t("by", { model: order[place] }); });
      votes.hidden = true;
      job.tell(winner ? t("voted", { model: winner }) : t("votedSame"));
      tally.textContent = t("tally", { counts: [...counts].map(([one, count]) => `${one}: ${count}`).join(" · ") });
      job.start.focus();
    }
    votes.append(...[["betterA", 0], ["betterB", 1], ["same", null]].map(([word, at]) =>
      el("button", { type: "button", word, onclick: () => vote(at) })));

    const node = el("div", {}, el("div.row.fields", {}, field("firstModel", first), field("secondModel", second)),
      field("prompt", prompt), job.node, both, votes, tally);
    return {
      node,
      refresh() {
        const able = state.able("text");
        const base = able.find((one) => !one.parent);
        options(first, state.listed(able));
        options(second, state.listed(able), second.value || base?.id);
        if (first.value === second.value) second.value = able.find((one) => one.id !== first.value)?.id;
      },
    };
  },
};
