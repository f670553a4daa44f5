// A camera, a stream or a file, watched as it happens: picture, boxes and curves, as they come.

import { source } from "./api.js";
import { Curves } from "./curves.js";
import { before, decode } from "./data.js";
import { button, h, plural } from "./dom.js";
import { Plane } from "./plane.js";
import { Player } from "./player.js";
import { State } from "./state.js";

const SHOWN_S = 30; // on the time axis
const LATE_S = 1; // the film catches up when it is further behind than this
const CAMERA = { width: 640, fps: 15 };

// Return an element for the page, or null where there is nothing to offer.
export function watching(features) {
  if (!features.live) return null;
  const kind = h("select", { "aria-label": "What to watch" }, h("option", { value: "browser" }, "the camera of this browser"),
    h("option", { value: "0" }, "camera 0 of the machine"), h("option", { value: "" }, "an address…"));
  const address = h("input", { class: "field", placeholder: "rtsp://camera/stream", "aria-label": "Address", hidden: true });
  const record = h("input", { type: "checkbox" });
  const faces = h("select", { "aria-label": "Whose faces" }, h("option", { value: "all" }, "everybody"), h("option", { value: "largest" }, "the largest face"));
  kind.addEventListener("change", () => (address.hidden = kind.value !== ""));
  source.entries().then(({ entries }) => kind.append(...entries.filter(({ video }) => video).map(({ id, name }) => h("option", { value: `entry:${id}` }, `${name}, in real time`))));
  const go = () => {
    sessionStorage.setItem("watch", JSON.stringify({ source: kind.value || address.value.trim(), faces: faces.value, record: record.checked }));
    location.hash = "#/live";
  };
  return h("section", { class: "card", "aria-label": "Watch" }, h("div", { class: "toolbar" }, h("strong", {}, "Watch live"), kind, address,
    h("label", {}, "faces of ", faces), h("label", {}, record, " record"), button("Watch", go)));
}

// Show what was chosen until it ends, is stopped, or the page goes elsewhere.
export function watch(main, place) {
  const asked = JSON.parse(sessionStorage.getItem("watch") ?? "null");
  const told = h("p", { class: "quiet" }, "Starting…"), stop = button("Stop", () => socket.send("{}"));
  main.className = "listing";
  main.replaceChildren(h("section", { class: "card", "aria-label": "Live" }, h("div", { class: "toolbar" }, stop, told)));
  place.replaceChildren(h("span", {}, "live"));
  if (!asked) return told.replaceChildren("nothing was chosen");
  const socket = new WebSocket(`ws://${location.host}/api/live`), pictures = new Map();
  let film = null, camera = null, over = false;
  socket.binaryType = "arraybuffer";
  const end = (text, record) => {
    over = true;
    camera?.getTracks().forEach((track) => track.stop());
    stop.hidden = true;
    told.replaceChildren(text || "It has ended. ", ...(record ? [" ", h("a", { href: record }, "Show the record")] : []));
  };
  socket.onopen = async () => {
    try {
      camera = asked.source === "browser" ? await navigator.mediaDevices.getUserMedia({ video: { width: CAMERA.width } }) : null;
      socket.send(JSON.stringify(asked));
      if (camera) sendPictures(camera, socket, () => over);
    } catch (error) {
      end(`the camera cannot be used: ${error.message}`);
      socket.close();
    }
  };
  socket.onmessage = async ({ data }) => {
    if (data instanceof ArrayBuffer) {
      const [kind, index, width, height] = new Uint32Array(data, 0, 4);
      if (kind) return film.take(decode(data));
      pictures.set(index, { width, height, bitmap: await createImageBitmap(new Blob([new Uint8Array(data, 16)], { type: "image/jpeg" })) });
      return;
    }
    const message = JSON.parse(data);
    if (message.entry) film = new Film(message.entry, pictures, main, stop, told);
    if (message.answered) told.textContent = `${plural(message.answered, "frame")} answered${message.dropped ? `, ${message.dropped} dropped` : ""}${asked.record ? ", recording" : ""}`;
    if ("ended" in message) end(message.ended, message.record);
  };
  socket.onclose = () => over || end("the connection was lost");
  addEventListener("hashchange", () => { over = true; film?.leave(); camera?.getTracks().forEach((track) => track.stop()); socket.close(); }, { once: true });
  return undefined;
}

async function sendPictures(camera, socket, over) {
  const video = h("video", { muted: true, playsInline: true });
  video.srcObject = camera;
  await video.play();
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight), began = performance.now();
  for (let index = 0; !over(); index++) {
    const at = performance.now();
    if (socket.bufferedAmount < 1e6) {
      canvas.getContext("2d").drawImage(video, 0, 0);
      const jpeg = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.85 }), head = new DataView(new ArrayBuffer(12));
      head.setUint32(0, index, true);
      head.setFloat64(4, (at - began) / 1000, true);
      const message = await new Blob([head.buffer, jpeg]).arrayBuffer();
      if (!over() && socket.readyState === WebSocket.OPEN) socket.send(message);  // it may have closed meanwhile
    }
    await new Promise((done) => setTimeout(done, Math.max(0, 1000 / CAMERA.fps - (performance.now() - at))));
  }
}

class Film {
  constructor(entry, pictures, main, ...words) {
    Object.assign(this, { pictures, playhead: 0 });
    this.state = new State(entry, { times: [], frames: [], people: [] });
    const { state } = this, plane = entry.labels.valence_arousal && new Plane(state);
    this.player = new Player(state);
    this.player.tell("");
    this.picture = h("canvas");
    this.player.stage.prepend(this.picture);
    this.curves = new Curves(state);
    main.className = "result live";
    main.replaceChildren(h("div", { class: "left" }, this.player.element, plane && h("div", { class: "below" }, plane.element, h("section", { class: "cast", "aria-label": "Live" }, words))), this.curves.element);
    globalThis.affserve = { state, film: this };
    this.tick = this.tick.bind(this);
    requestAnimationFrame(this.tick);
  }

  // The rows of the last seconds; who is known stays the same object, which the curves hold.
  take(data) {
    const { state } = this, former = new Map(state.data.people.map((person) => [person.track, person]));
    data.people = data.people.map((person) => Object.assign(former.get(person.track) ?? {}, person));
    state.take(data);
    if (data.people.length !== former.size || data.people.some(({ track }) => !former.has(track))) state.tell("data");
    state.k = before(data.times, this.playhead);
    state.look(state.end - SHOWN_S, state.end);
  }

  // Answers come in bursts: the film goes on at its own pace, and shows what is drawn over the very picture it is of.
  tick(now) {
    if (this.gone) return;
    requestAnimationFrame(this.tick);
    const { state } = this, { times, frames } = state.data, last = times[times.length - 1];
    if (times.length) {
      this.playhead = Math.min(last, Math.max(last - LATE_S, this.playhead + (now - (this.ticked ?? now)) / 1000));
      const k = before(times, this.playhead), picture = this.pictures.get(frames[k]);
      if (picture && frames[k] !== this.drawn) this.draw(k, frames[k], picture);
    }
    this.ticked = now;
  }

  draw(k, frame, { width, height, bitmap }) {
    if (this.picture.width !== bitmap.width) this.picture.width = bitmap.width;
    if (this.picture.height !== bitmap.height) this.picture.height = bitmap.height;
    this.picture.getContext("2d").drawImage(bitmap, 0, 0);
    this.player.playing = { width, height, offset_s: 0 };
    this.drawn = frame;
    this.state.k = k;
    this.state.tell("show", k);
    this.player.draw();
    for (const [index, { bitmap: old }] of this.pictures) if (index < frame) { old.close(); this.pictures.delete(index); }
  }

  leave() {
    this.gone = true;
    this.player.leave();
  }
}
