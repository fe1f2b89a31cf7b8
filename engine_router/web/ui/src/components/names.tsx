// Names that others gave: of models, engines, files. Whatever is in them, nothing around them changes its order.
import { Fragment } from "preact";

/** Shows names one after the other, each isolated from the others and from what is said around them. */
export function Names({ names }: { names: readonly string[] }) {
  return (
    <>
      {names.map((name, index) => (
        <Fragment key={index}>
          {index > 0 && ", "}
          <bdi>{name}</bdi>
        </Fragment>
      ))}
    </>
  );
}
