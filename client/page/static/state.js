// What all parts of a result's page share: the result, the frame shown, what is on the time axis, and the edits.
// Events: seek (a frame is asked for), show (it is on the screen), view, select, data (other rows), people, parts.

import { source } from "./api.js";
import { before, decode, endOf } from "./data.js";
import { say } from "./dom.js";

export class State {
  constructor(entry, data) {
    this.entry = entry;
    this.edits = entry.edits ?? { people: {}, parts: [] };
    this.undoable = entry.undo ?? 0;
    this.k = 0; // ordinal of the frame shown
    this.selection = null; // {from, to} in seconds
    this.listeners = {};
    this.take(data);
    this.view = { from: this.begin, to: this.end }; // seconds on the time axis
  }

  take(data) {
    this.data = data;
    this.begin = data.times[0] ?? 0;
    this.end = data.times.length ? endOf(data.times, data.times.length - 1) : 1;
  }

  on(event, listener) {
    (this.listeners[event] ??= []).push(listener);
  }

  tell(event, value) {
    for (const listener of this.listeners[event] ?? []) listener(value);
  }

  // Ask for a frame; `show` follows as soon as it is on the screen.
  seek(k) {
    this.tell("seek", Math.max(0, Math.min(this.data.times.length - 1, Math.round(k))));
  }

  // The frame that is on the screen at a time.
  seekTime(time) {
    this.seek(before(this.data.times, time));
  }

  get time() {
    return this.data.times[this.k] ?? 0;
  }

  show(k) {
    this.k = k;
    const { from, to } = this.view;
    // The axis follows the film where it is zoomed in.
    if (this.time < from || this.time >= to) this.look(this.time - 0.1 * (to - from), this.time + 0.9 * (to - from));
    this.tell("show", k);
  }

  look(from, to) {
    const whole = this.end - this.begin, width = Math.min(whole, Math.max(to - from, Math.min(whole, 0.2)));
    const start = Math.max(this.begin, Math.min(this.end - width, from));
    this.view = { from: start, to: start + width };
    this.tell("view", this.view);
  }

  zoom(factor, around = this.time) {
    const { from, to } = this.view, middle = Math.max(from, Math.min(to, around));
    this.look(middle - (middle - from) * factor, middle + (to - middle) * factor);
  }

  select(selection) {
    this.selection = selection;
    this.tell("select", selection);
  }

  colour(track) {
    const colours = this.entry.colours.tracks;
    return colours[track % colours.length];
  }

  edit(track) {
    return this.edits.people[track] ?? {};
  }

  name(track) {
    return this.edit(track).name || `person ${track}`;
  }

  // People of the rows that are not hidden.
  get visible() {
    return this.data.people.filter(({ track }) => !this.edit(track).hidden);
  }

  // Change the edits: `change` gets a copy; what the file takes is what is shown.
  async change(change, rows = true) {
    const edits = structuredClone(this.edits);
    change(edits);
    await this.keep(() => source.edit(this.entry.id, edits), rows);
  }

  async undo() {
    if (this.undoable) await this.keep(() => source.undo(this.entry.id), true);
  }

  async keep(ask, rows) {
    try {
      const told = await ask();
      const data = rows ? decode(await source.rows(this.entry.id)) : null;
      this.edits = told.edits;
      this.undoable = told.undo;
      if (data) { this.take(data); this.tell("data"); }
      this.tell("people");
      this.tell("parts");
    } catch (error) {
      say(error.message);
    }
  }
}
