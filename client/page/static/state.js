// What all parts of a result's page share: the result, the frame shown, and who wants to know of changes.

import { nearest } from "./data.js";

export class State {
  constructor(entry, data) {
    this.entry = entry;
    this.data = data;
    this.k = 0; // ordinal of the frame shown
    this.listeners = {};
  }

  on(event, listener) {
    (this.listeners[event] ??= []).push(listener);
  }

  tell(event, value) {
    for (const listener of this.listeners[event] ?? []) listener(value);
  }

  // Ask for a frame; `show` follows as soon as it is on the screen.
  seek(k) {
    this.tell("seek", Math.max(0, Math.min(this.data.times.length - 1, k)));
  }

  seekTime(time) {
    this.seek(nearest(this.data.times, time));
  }

  show(k) {
    this.k = k;
    this.tell("show", k);
  }

  colour(track) {
    const colours = this.entry.colours.tracks;
    return colours[track % colours.length];
  }
}
