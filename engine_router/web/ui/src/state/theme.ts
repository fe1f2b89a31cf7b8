// Light or dark, or as the system has it.
import { effect, signal } from "@preact/signals";

export type Theme = "auto" | "light" | "dark";

const NAME = "engine-router.theme";
const ORDER: readonly Theme[] = ["auto", "light", "dark"];

function kept(): Theme {
  try {
    return ORDER.find((theme) => theme === localStorage.getItem(NAME)) ?? "auto";
  } catch {
    return "auto";
  }
}

export const theme = signal<Theme>(kept());

effect(() => {
  document.documentElement.dataset["theme"] = theme.value;
  try {
    localStorage.setItem(NAME, theme.value);
  } catch {
    // Storage may be forbidden; then the choice lasts as long as the page.
  }
});

/** Goes on to the next of the three. */
export function nextTheme(): void {
  theme.value = ORDER[(ORDER.indexOf(theme.value) + 1) % ORDER.length] ?? "auto";
}
