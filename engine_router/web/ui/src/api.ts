// Requests to the router. All of them go to where the page came from, with the session's cookie.

/** What stands in front of every path: a key, or a proxy's prefix; empty in most cases. */
export const base = location.pathname.replace(/\/+$/, "");

/** The router refused a request, or did not answer (status 0). */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

type Listener = () => void;
let onUnauthorized: Listener = () => {};

/** Names who is told when the router wants a key. */
export function whenUnauthorized(listener: Listener): void {
  onUnauthorized = listener;
}

export interface Options {
  method?: string;
  body?: unknown;
  signal?: AbortSignal;
  /** Do not ask for a key where the router wants one. */
  quiet?: boolean;
}

/** Sends a request and returns the response, whatever it is streamed as. Throws an ApiError for an error's status. */
export async function send(path: string, options: Options = {}): Promise<Response> {
  const { method = "GET", body, signal, quiet = false } = options;
  const init: RequestInit = { method, credentials: "same-origin", headers: { Accept: "application/json" } };
  if (signal) init.signal = signal;
  if (body instanceof FormData) init.body = body;
  else if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers = { Accept: "application/json", "Content-Type": "application/json" };
  }
  let response: Response;
  try {
    response = await fetch(base + path, init);
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError("The router does not answer.", 0);
  }
  if (response.ok) return response;
  if (response.status === 401 && !quiet) onUnauthorized();
  throw new ApiError(messageIn(await response.text()) || `The router answered ${response.status}.`, response.status);
}

/** Sends a request and returns what its answer holds as JSON. */
export async function request<T>(path: string, options: Options = {}): Promise<T> {
  const response = await send(path, options);
  return (response.status === 204 ? null : await response.json()) as T;
}

export const get = <T>(path: string, signal?: AbortSignal): Promise<T> => request<T>(path, signal ? { signal } : {});
export const post = <T>(path: string, body: unknown = {}): Promise<T> => request<T>(path, { method: "POST", body });

/** Returns a query string of what is given; empty and absent values are left out. */
export function query(values: Record<string, string | number | boolean | null | undefined>): string {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `?${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}` : "";
}

/** Finds the message in an error's body, whichever dialect it is in. */
function messageIn(text: string): string {
  try {
    const { error } = JSON.parse(text) as { error?: string | { message?: string } };
    return typeof error === "string" ? error : (error?.message ?? "");
  } catch {
    return "";
  }
}
