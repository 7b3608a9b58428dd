"use strict";

const byId = (id) => document.getElementById(id);

function element(name, properties = {}, children = []) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/* The table: a click on a column sorts by it, another one the other way; what is empty stays last. */
function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.by;
      const rows = [...body.rows];
      const numbers = rows.every((row) => key(row) === "" || !Number.isNaN(Number(key(row))));
      rows.sort((a, b) => {
        const [one, two] = [key(a), key(b)];
        if (one === "" || two === "") return (one === "") - (two === "");
        const order = numbers ? Number(one) - Number(two) : one.localeCompare(two, "en", { numeric: true });
        return up ? order : -order;
      });
      body.append(...rows);
    });
  });
}

/* Its filters: part of a name, and the value of each selection. */
function filtered(table) {
  const find = byId("find");
  const selects = [...document.querySelectorAll("[data-filter]")];
  const rows = [...table.tBodies[0].rows];
  const update = () => {
    const text = find.value.trim().toLowerCase();
    for (const row of rows) {
      const named = row.cells[0].textContent.toLowerCase().includes(text);
      row.hidden = !named || selects.some((one) => one.value && row.dataset[one.dataset.filter] !== one.value);
    }
    const count = rows.filter((row) => !row.hidden).length;
    byId("shown").textContent = `${count} ${count === 1 ? "row" : "rows"}`;
  };
  [find, ...selects].forEach((control) => control.addEventListener("input", update));
}

/* The pictures: a row an arm, the reference first; a single column becomes cards. */
function gallery(data, place) {
  const select = { prompt: byId("prompt"), seed: byId("seed"), guidance: byId("guidance") };
  const slider = byId("steps");
  const values = (box) => [...box.options].map((option) => option.value).filter((value) => value !== "all");
  const chosen = (box) => (box.value === "all" ? values(box) : [box.value]);
  const pixels = Math.max(data.width, data.height) <= 64;

  const image = (index, prompt, alt) => {
    const made = element("img", { src: data.images[index], alt, decoding: "async" });
    const count = data.prompts.length;
    made.style.objectPosition = `${count > 1 ? (100 * prompt) / (count - 1) : 0}% 0`;
    return made;
  };

  const shot = (index, reference, column, name) => {
    const ratio = `${data.width} / ${data.height}`;
    if (index === undefined) {
      const empty = element("div", { className: "missing", textContent: "no picture" });
      empty.style.aspectRatio = ratio;
      return empty;
    }
    const alt = `${name}: ${data.prompts[column.prompt]}, seed ${column.seed}`;
    const made = element("div", { className: pixels ? "shot pixels" : "shot" }, [image(index, column.prompt, alt)]);
    made.style.aspectRatio = ratio;
    if (reference !== undefined && reference !== index) {
      const under = image(reference, column.prompt, "");
      under.classList.add("under");
      made.classList.add("compared");
      made.append(under);
      made.addEventListener("click", () => made.classList.toggle("on"));
    }
    return made;
  };

  const draw = () => {
    const steps = data.steps[slider.value];
    const guidance = select.guidance.value;
    const columns = chosen(select.prompt).flatMap((prompt) =>
      chosen(select.seed).map((seed) => ({ prompt: Number(prompt), seed })));
    const reference = (column) => data.places[`${guidance}|${column.seed}`];
    const named = (arm, small) => element("div", { className: `name ${arm.kind}` }, [
      element("span", { className: "who", textContent: arm.name }), element("small", { textContent: small })]);
    const row = (arm, small, find) => {
      const cells = columns.map((column) => shot(find(column), reference(column), column, arm.name));
      return columns.length === 1
        ? [element("div", { className: "card" }, [...cells, named(arm, small)])]
        : [named(arm, small), ...cells];
    };
    const rows = [
      ...row({ name: "reference", kind: "reference" }, "the converged solution", reference),
      ...data.arms.flatMap((arm, number) => row(
        arm, data.errors[`${guidance}|${steps}|${number}`] ?? `not run at ${steps} steps`,
        (column) => data.places[`${guidance}|${column.seed}|${steps}|${number}`])),
    ];
    const grid = element("div", { className: columns.length === 1 ? "cards" : "grid" });
    if (columns.length > 1) {
      grid.style.gridTemplateColumns = `minmax(7rem, 13rem) repeat(${columns.length}, minmax(5.5rem, 11rem))`;
      const seeds = select.seed.value === "all";
      const head = (column) => data.prompts[column.prompt] + (seeds ? `, seed ${column.seed}` : "");
      grid.append(element("div"), ...columns.map((column) =>
        element("div", { className: "head", textContent: head(column) })));
    }
    grid.append(...rows);
    place.replaceChildren(grid);
    byId("steps-shown").textContent = steps;
    slider.setAttribute("aria-valuetext", `${steps} steps`);
  };

  [...Object.values(select), slider].forEach((control) => control.addEventListener("input", draw));
  byId("differences").addEventListener("input", (event) =>
    place.classList.toggle("differences", event.target.checked));
  if (matchMedia("(min-width: 48rem)").matches && data.prompts.length > 1) select.prompt.value = "all";
  draw();
}

const results = byId("results");
sortable(results);
filtered(results);
if (byId("data")) gallery(JSON.parse(byId("data").textContent), byId("gallery"));
