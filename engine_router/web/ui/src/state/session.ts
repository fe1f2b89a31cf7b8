// Who uses the page: the key that the browser's session stands for.
import { computed, signal } from "@preact/signals";
import { request, whenUnauthorized } from "../api";
import type { Session } from "../types";

const NOBODY: Session = { authenticated: false, key: null, admin: false, asks_for_key: true };

/** The session; null until it is known. */
export const session = signal<Session | null>(null);

/** Whether the page has to ask for a key before it goes on. */
export const needsKey = computed(() => session.value !== null && !session.value.authenticated);

/** Whether what this key may do includes everything. */
export const isAdmin = computed(() => session.value?.admin === true);

whenUnauthorized(() => {
  session.value = NOBODY;
});

/** Asks the router whose session it is. Where it does not answer, whoever was there before is still there. */
export async function checkSession(): Promise<void> {
  try {
    session.value = await request<Session>("/admin/session", { quiet: true });
  } catch {
    // Nothing new is known.
  }
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
