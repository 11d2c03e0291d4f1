"use strict";
// Pages, filters and a search over the jobs that the report holds. A page copies cards and tables out of the parts that
// the report was written in; no text is ever read as markup. The address keeps the place, so that going back finds it.
(() => {
  const PAGE = 400; // jobs, at most, unless one part of a grid has more
  const FEW = 12; // so many need no tools
  const by = (id) => document.getElementById(id);
  const [tools, pager, shown, find, state, stage, number] =
    ["tools", "pager", "shown", "find", "state", "stage", "page"].map(by);
  const sections = [...document.querySelectorAll("section.stage")];
  const parts = sections.flatMap((section) => taken(section));
  const total = parts.reduce((sum, part) => sum + part.jobs.length, 0);
  let pages = [], page = 0;

  // Takes the parts out of a section: what follows shows copies of them.
  function taken(section) {
    const results = section.querySelector(".results");
    const held = [...results.children].map((child) => (child.content ? child.content.firstElementChild : child));
    const found = held.filter((part) => part.matches(".part")).map((part) => ({
      section, results, part,
      table: part.querySelector("table") !== null,
      jobs: [...part.querySelectorAll(".job")].map((element) => ({ element, text: null })),
    }));
    results.replaceChildren(...held.filter((child) => child.matches(".fixed")));
    return found;
  }

  function matching(words) {
    return (job) => {
      const element = job.element;
      if (state.value && (element.dataset.state ?? "made") !== state.value) return false;
      if (!words.length) return true;
      job.text ??= `${element.title} ${element.textContent}`.toLowerCase();
      return words.every((word) => job.text.includes(word));
    };
  }

  // Lays what is asked for out on pages, a part on one of them.
  function paged() {
    const matches = matching(find.value.toLowerCase().split(/\s+/).filter(Boolean));
    pages = [];
    let first = 1, last = null;
    for (const part of parts) {
      if (stage?.value && part.section.dataset.name !== stage.value) continue;
      const jobs = part.jobs.filter(matches);
      if (!jobs.length) continue;
      if (!last || last.count + jobs.length > PAGE) pages.push((last = { first, count: 0, parts: [] }));
      last.parts.push({ ...part, found: jobs });
      last.count += jobs.length;
      first += jobs.length;
    }
  }

  function show(to) {
    page = Math.min(Math.max(to, 0), Math.max(pages.length - 1, 0));
    for (const section of sections) {
      section.hidden = true;
      section.querySelectorAll(".results > :not(.fixed)").forEach((old) => old.remove());
    }
    for (const part of pages[page]?.parts ?? []) {
      part.section.hidden = false;
      if (part.table) part.results.append(table(part));
      else gallery(part.results).append(...part.found.map((job) => document.importNode(job.element, true)));
    }
    number.value = page + 1;
    for (const button of pager.querySelectorAll("button")) {
      button.disabled = ["first", "previous"].includes(button.value) ? page === 0 : page >= pages.length - 1;
    }
    tell();
  }

  function gallery(results) {
    const last = results.lastElementChild;
    if (last?.matches(".gallery")) return last;
    const fresh = document.createElement("div");
    fresh.className = "gallery";
    results.append(fresh);
    return fresh;
  }

  // A part of a grid, or of it the rows and columns that hold what was asked for.
  function table({ part, jobs, found }) {
    if (found.length === jobs.length) return document.importNode(part, true);
    const wanted = new Set(found.map((job) => job.element));
    const holds = (cell) => [...cell.children].some((job) => wanted.has(job));
    const [heads, ...rows] = part.querySelector("table").rows;
    const kept = rows.filter((row) => [...row.cells].some(holds));
    const columns = [...Array(heads.cells.length).keys()]
      .filter((i) => heads.cells[i].matches("td") || kept.some((row) => holds(row.cells[i])));
    const copy = document.importNode(part, false);
    const scroll = document.importNode(part.querySelector(".scroll"), false);
    const grid = document.importNode(part.querySelector("table"), false);
    for (const row of [heads, ...kept]) {
      const line = grid.insertRow();
      for (const cell of columns.map((i) => row.cells[i])) {
        const place = document.importNode(cell, cell.matches("th"));
        for (const job of cell.children) if (wanted.has(job)) place.append(document.importNode(job, true));
        line.append(place);
      }
    }
    scroll.append(grid);
    const title = part.querySelector(":scope > summary");
    copy.append(...(title ? [document.importNode(title, true)] : []), scroll);
    return copy;
  }

  function tell() {
    const found = pages.reduce((sum, one) => sum + one.count, 0);
    const here = pages[page];
    const range = !here ? "no jobs" : found === here.count ? `${found.toLocaleString("en")} jobs`
      : `${here.first.toLocaleString("en")} to ${(here.first + here.count - 1).toLocaleString("en")} of ${found.toLocaleString("en")} jobs`;
    shown.textContent = found < total ? `${range} (of ${total.toLocaleString("en")})` : range;
    const place = new URLSearchParams();
    if (page) place.set("page", page + 1);
    for (const field of [find, state, stage]) if (field?.value) place.set(field.id, field.value);
    try {
      if (`#${place}` !== (location.hash || "#")) history.replaceState(null, "", `#${place}`);
    } catch {} // a page shown inside another has no address of its own
  }

  function filter(to = 0) {
    paged();
    by("pages").textContent = pages.length.toLocaleString("en");
    number.max = pages.length;
    pager.hidden = pages.length < 2;
    show(to);
  }

  function turn(to) {
    show(to);
    tools.scrollIntoView();
  }

  const turns = { first: () => 0, previous: () => page - 1, next: () => page + 1, last: () => pages.length - 1 };
  pager.addEventListener("click", ({ target }) => turns[target.value] && target.matches("button") && turn(turns[target.value]()));
  number.addEventListener("change", () => turn(Math.round(number.value || 1) - 1));
  document.addEventListener("keydown", (event) => {
    const key = { ArrowLeft: "previous", ArrowRight: "next" }[event.key];
    const free = document.activeElement === document.body || document.activeElement.matches("#pager button");
    if (key && free && !pager.hidden && !event.altKey && !event.ctrlKey && !event.metaKey) turn(turns[key]());
  });
  let waiting = 0;
  find.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => filter(), 150);
  });
  for (const field of [state, stage]) field?.addEventListener("change", () => filter());

  const place = new URLSearchParams(location.hash.slice(1));
  for (const field of [find, state, stage]) if (field) field.value = place.get(field.id) ?? "";
  tools.hidden = total <= FEW;
  filter(Math.round(place.get("page") || 1) - 1);
})();
