// The only module that asks the server. A page that carries its own result replaces what `source` does.

export async function asked(path, options = {}) {
  const answer = await fetch(path, options);
  if (answer.ok) return answer;
  const told = await answer.text();
  let error = told;
  try { error = JSON.parse(told).error ?? told; } catch { /* plain text */ }
  throw new Error(error || `${answer.status} ${answer.statusText}`);
}

export const getJSON = async (path) => (await asked(path)).json();

export const send = async (method, path, value) =>
  (await asked(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) })).json();

export const source = {
  entries: () => getJSON("/api/entries"),
  entry: (id) => getJSON(`/api/entries/${id}`),
  rows: async (id) => (await asked(`/api/entries/${id}/rows`)).arrayBuffer(),
  playing: (id, copied) => getJSON(`/api/entries/${id}/playing${copied ? "?copied" : ""}`),
  media: (id, copied) => `/media/${id}${copied ? "?copied" : ""}`,
  edit: (id, edits) => send("PUT", `/api/entries/${id}/edits`, edits), // null where nothing can be edited
  undo: (id) => send("POST", `/api/entries/${id}/undo`, {}),
};
