// The views of the page. To add one: its file beside this one, which exports a component by default, and a line here.
import type { ComponentType } from "preact";
import Home from "./home";

export interface View {
  /** The first part of its fragment: `#/NAME`; empty for the first one. */
  name: string;
  title: string;
  /** The component, or how it is loaded when it is wanted first. */
  view: ComponentType | (() => Promise<{ default: ComponentType }>);
  lazy: boolean;
  /** Only a key that may do everything sees it. */
  admin?: boolean;
}

export const VIEWS: readonly View[] = [
  { name: "", title: "Home", view: Home, lazy: false, admin: true },
  { name: "models", title: "Models", view: () => import("./models"), lazy: true, admin: true },
  { name: "activity", title: "Activity", view: () => import("./activity"), lazy: true },
  { name: "figures", title: "Figures", view: () => import("./figures"), lazy: true, admin: true },
];
