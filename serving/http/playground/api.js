// Requests to the service: the key, its errors as sentences, streams, and a service that restarts in between.
import { t } from "./words.js";

const KEY = "kauli.key";

/** The service's own words on why it refused. */
export class ServiceError extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

/** The service is not reached, or went away in the middle of an answer. */
export class Lost extends Error {}

export const key = () => sessionStorage.getItem(KEY) ?? "";
export const keepKey = (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY));

/** What the service answers; `body` is an object (sent as JSON) or a FormData. Raises ServiceError and Lost. */
export async function ask(path, { method, body, signal } = {}) {
  const headers = {};
  if (key()) headers.Authorization = `Bearer ${key()}`;
  if (body && !(body instanceof FormData)) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: method ?? (body ? "POST" : "GET"), headers, signal,
      body: body && !(body instanceof FormData) ? JSON.stringify(body) : body,
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Lost(t("lost"));
  }
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try { message = (await response.json()).error.message; } catch { /* a proxy's page */ }
  if ([502, 504].includes(response.status) && message.startsWith(String(response.status))) throw new Lost(t("lost"));
  if (response.status === 401) document.dispatchEvent(new CustomEvent("kauli-key"));
  throw new ServiceError(response.status === 401 ? t("keyNeeded") : message, response.status);
}

/** The JSON that the service answers. */
export const askJson = async (path, options) => read((await ask(path, options)).json());

/** What a body holds; a connection that breaks is Lost. */
export async function read(promise) {
  try { return await promise; } catch (error) { throw error.name === "AbortError" ? error : new Lost(t("lost")); }
}

/** The events of a stream, as objects; Lost where it ends before the event `last` says that it is whole. */
export async function* events(response, last = (data) => data === "[DONE]") {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await read(reader.read());
    if (done) throw new Lost(t("lost"));
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (last(data)) return;
      const event = JSON.parse(data);
      if (event.error) throw new ServiceError(event.error.message, 500);
      yield event;
    }
  }
}

/** A chat answer as it is streamed: `piece(text)` for each part; resolves to {model, language, certificate, finish}. */
export async function chat(body, piece, signal) {
  const response = await ask("v1/chat/completions", { body: { ...body, stream: true }, signal });
  const found = { model: response.headers.get("X-Kauli-Adapter") ?? body.model, language: response.headers.get("X-Kauli-Language") };
  for await (const event of events(response)) {
    const choice = event.choices[0];
    if (choice?.delta?.content) piece(choice.delta.content);
    if (choice?.finish_reason) Object.assign(found, { finish: choice.finish_reason, certificate: choice.certificate });
  }
  return found;
}

/** Resolve once the service answers again. */
export async function returned(signal) {
  for (;;) {
    await new Promise((found, failed) => {
      const timer = setTimeout(found, 1000);
      signal.addEventListener("abort", () => { clearTimeout(timer); failed(new DOMException("", "AbortError")); }, { once: true });
    });
    try {
      const response = await fetch("v1/service", { signal, headers: key() ? { Authorization: `Bearer ${key()}` } : {} });
      if (response.ok || response.status === 401) return;
    } catch (error) { if (error.name === "AbortError") throw error; }
  }
}
