// The selected part as CSV or PNG, and the overlay video.

import { getJSON, send } from "./api.js";
import { button, clock, h, percent, say } from "./dom.js";

// Return an element for the page, or null where there is nothing to offer.
export function exporting(state) {
  const { entry } = state;
  if (!entry.features?.export) return null;
  const part = h("small"), stem = entry.name.replace(/\.[^.]*$/, "");
  const link = (kind) => h("a", { class: "button", download: "", href: `/api/entries/${entry.id}/part.${kind}` }, kind.toUpperCase());
  const links = { csv: link("csv"), png: link("png") };
  const show = () => {
    const { from, to } = state.selection ?? {};
    part.textContent = state.selection ? `${clock(from)} to ${clock(to)}` : "all of it; drag over the curves for a part";
    for (const [kind, element] of Object.entries(links)) {
      element.href = `/api/entries/${entry.id}/part.${kind}${state.selection ? `?from=${from}&to=${to}` : ""}`;
      element.download = `${stem}.${state.selection ? `${from.toFixed(2)}-${to.toFixed(2)}s.` : ""}${kind}`;
    }
  };
  state.on("select", show);
  show();
  return h("section", { class: "export", "aria-label": "Export" }, h("h2", {}, "Export"),
    h("div", { class: "toolbar" }, links.csv, links.png, entry.video && overlay(entry), part));
}

function overlay(entry) {
  let task = null;
  const ask = button("Overlay video", async () => {
    try {
      if (task) return await send("DELETE", `/api/queue/${task.id}`, null);
      task = await send("POST", `/api/entries/${entry.id}/overlay`, {});
      await follow();
    } catch (error) {
      say(error.message);
    }
    task = null;
    ask.textContent = "Overlay video";
  }, { title: "The video with faces, expressions and action units drawn on it" });

  async function follow() {
    while (["waiting", "running"].includes(task.state)) {
      ask.textContent = task.total ? `Overlay, ${percent(task.done / task.total)} – cancel` : "Overlay… – cancel";
      await new Promise((done) => setTimeout(done, 400));
      task = (await getJSON("/api/queue")).tasks.find(({ id }) => id === task.id);
    }
    if (task.state === "failed") say(task.error);
    if (task.state === "done" && ask.isConnected) h("a", { href: task.outcome, download: "" }).click();
  }
  return ask;
}
