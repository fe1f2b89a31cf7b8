// Who uses the page: the key that the browser's session stands for.
import { computed, signal } from "@preact/signals";
import { ApiError, request, whenUnauthorized } from "../api";
import type { Session } from "../types";

const EVERYBODY: Session = { authenticated: true, key: null, admin: true, asks_for_key: false };

/** The session; null until it is known. */
export const session = signal<Session | null>(null);

/** Whether the page has to ask for a key before it goes on. */
export const needsKey = computed(() => session.value !== null && !session.value.authenticated);

/** Whether what this key may do includes everything. */
export const isAdmin = computed(() => session.value?.admin === true);

whenUnauthorized(() => {
  const before = session.value;
  session.value = { ...(before ?? EVERYBODY), authenticated: false, asks_for_key: true };
});

/** Asks the router whose session it is. Returns whether the page may go on. */
export async function checkSession(): Promise<boolean> {
  try {
    session.value = await request<Session>("/admin/session", { quiet: true });
  } catch (error) {
    const status = error instanceof ApiError ? error.status : 0;
    // A router without sessions lets the browser ask for the key.
    if (status === 404) session.value = EVERYBODY;
    if (status === 401) session.value = { ...EVERYBODY, authenticated: false, asks_for_key: true };
  }
  return session.value?.authenticated !== false;
}

/** Begins a session for a key. Throws an ApiError where it is not one of the router's. */
export async function logIn(key: string): Promise<void> {
  await request("/admin/session", { method: "POST", body: { key }, quiet: true });
  await checkSession();
}

/** Ends the session. */
export async function logOut(): Promise<void> {
  await request("/admin/session", { method: "DELETE", quiet: true });
  await checkSession();
}
