/** The server, spoken to: token, waiting when it is busy, errors of one line. */

const TOKEN = "blemish-token";
const BUSY_TRIES = 6;

/** An answer that is no success. status: 0 when there was no answer at all. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

let token = readToken();
let asking = null;
let ask = async () => null;

/** askFor(again) -> Promise of a token, or of null when the operator gave up. */
export const setTokenQuestion = (askFor) => (ask = askFor);

function readToken() {
  try {
    return sessionStorage.getItem(TOKEN);
  } catch {
    return null; // storage may be switched off: the token then lasts as long as the page
  }
}

function keepToken(value) {
  token = value;
  try {
    sessionStorage.setItem(TOKEN, value);
  } catch {
    // as above
  }
}

/** One question at a time, however many requests were refused together. */
function newToken() {
  asking ??= ask(token !== null).finally(() => (asking = null));
  return asking;
}

/** Resolves after some milliseconds, or rejects as soon as the signal is aborted. */
export function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

async function attempt(path, options) {
  const headers = new Headers(options.headers);
  if (token !== null) headers.set("Authorization", `Bearer ${token}`);
  try {
    return await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Refused("the server does not answer", 0);
  }
}

/** A request with the token; asks for one when the server wants it. Returns the Response, of any other status. */
async function authorised(path, options) {
  for (;;) {
    const used = token;
    const response = await attempt(path, options);
    if (response.status !== 401) return response;
    if (used !== token) continue; // another request has brought a newer one meanwhile
    const given = await newToken();
    if (given === null) throw new Refused("the server wants a token", 401);
    keepToken(given);
  }
}

/** Seconds to wait before the next try: Retry-After as a number or a date, else 1; never more than 60. */
export function retryAfter(response) {
  const header = response.headers.get("Retry-After") ?? "1";
  const seconds = /^\d+(\.\d+)?$/.test(header.trim()) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.min(60, Math.max(0.2, seconds)) : 1;
}

async function reason(response) {
  const body = await response.json().catch(() => null);
  const text = body?.error ?? (typeof body?.detail === "string" ? body.detail : null);
  return text ?? `the server answered ${response.status} ${response.statusText}`.trim();
}

/** A successful Response of any kind, or Refused. Statuses in `also` count as success. */
export async function request(path, { also = [], ...options } = {}) {
  const response = await authorised(path, options);
  if (response.ok || also.includes(response.status)) return response;
  throw new Refused(await reason(response), response.status);
}

/** The JSON of an answer, or Refused. */
export async function json(path, options) {
  return (await request(path, options)).json();
}

/**
 * Send one picture; a busy server is waited for as long as it asks.
 *
 * fields: form fields beside the picture, null ones are left out. onWait(seconds): the server is busy.
 * Returns the server's record of the picture. Throws Refused, or the signal's reason.
 */
export async function predict(file, name, fields, { signal, onWait }) {
  const body = new FormData();
  body.append("images", file, name);
  for (const [key, value] of Object.entries(fields)) if (value !== null) body.append(key, String(value));
  for (let tries = 1; ; tries++) {
    const response = await authorised("v1/predict", { method: "POST", body, signal });
    const again = response.status === 429 || (response.status === 503 && tries < BUSY_TRIES);
    if (again) {
      const seconds = retryAfter(response);
      onWait(seconds);
      await sleep(1000 * seconds, signal);
      continue;
    }
    if (!response.ok && response.status !== 422) throw new Refused(await reason(response), response.status);
    const answer = await response.json();
    const found = answer.results?.[0];
    if (!found) throw new Refused(answer.error ?? "the server sent no result", response.status);
    if (found.error) throw new Refused(found.error, response.status);
    return found;
  }
}

export const putVerdict = (id, verdict) =>
  json(`v1/history/${encodeURIComponent(id)}/verdict`, {
    method: "PUT",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ verdict }),
  });

/** "?a=1&b=2" of what is neither empty nor null. */
export function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== "" && value !== undefined);
  return given.length ? `?${new URLSearchParams(given)}` : "";
}
