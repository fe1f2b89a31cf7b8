// The views of the page. To add one: its file beside this one, which exports a component by default, and a line here.
import type { ComponentType } from "preact";
import Home from "./home";

interface Entry {
  /** The first part of its fragment: `#/NAME`; empty for the first one. */
  name: string;
  title: string;
  /** Only a key that may do everything sees it. */
  admin?: boolean;
}

/** A view: a component, or how it is loaded when it is wanted first, as a bundle of its own. */
export type View = Entry & ({ View: ComponentType } | { load: () => Promise<{ default: ComponentType }> });

export const VIEWS: readonly View[] = [
  { name: "", title: "Home", View: Home, admin: true },
  { name: "models", title: "Models", load: () => import("./models"), admin: true },
  { name: "activity", title: "Activity", load: () => import("./activity") },
  { name: "figures", title: "Figures", load: () => import("./figures"), admin: true },
  { name: "playground", title: "Playground", load: () => import("./playground") },
  { name: "logs", title: "Logs", load: () => import("./logs"), admin: true },
  { name: "config", title: "Configuration", load: () => import("./config"), admin: true },
];
