// A page in a file: what the server would answer lies in the page itself.

import { source } from "./api.js";

const text = (id) => document.getElementById(id).textContent;
const bytes = (id) => Uint8Array.from(atob(text(id)), (one) => one.charCodeAt(0));
const entry = JSON.parse(text("entry"));
const video = entry.playing && URL.createObjectURL(new Blob([bytes("video")], { type: "video/mp4" }));
// Of the edits, those that change rows: they need the program.
const others = ({ people }) => JSON.stringify(Object.entries(people).map(([track, { name, hidden, ...rest }]) => [track, rest]).filter(([, rest]) => Object.keys(rest).length));

Object.assign(source, {
  entries: async () => ({ features: {}, entries: [entry] }),
  entry: async () => entry,
  rows: async () => bytes("rows").buffer,
  playing: async () => entry.playing,
  media: () => video,
  edit: async (id, edits) => {
    if (others(edits) !== others(entry.edits)) throw new Error("this page is a copy: people are merged, split and excluded in affserve view");
    return { edits, undo: 0 };
  },
  undo: async () => ({ edits: entry.edits, undo: 0 }),
});
if (!location.hash) location.replace(`#/r/${entry.id}`);
import("./main.js");
