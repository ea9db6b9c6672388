"use strict";
(() => {
  const source = document.getElementById("data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const $ = (id) => document.getElementById(id);
  const browser = $("browser"), tip = $("tip"), said = $("said");
  const first = [];
  let count = 0;
  data.slides.forEach((slide) => { first.push(count); count += slide.rows.length; });
  const slideOf = (n) => { let s = 0; while (s + 1 < first.length && first[s + 1] <= n) s++; return s; };
  let chosen = 0;

  const make = (name, attributes, parent) => {
    const node = document.createElementNS(SVG, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (parent) parent.appendChild(node);
    return node;
  };
  const describe = (n) => {
    const s = slideOf(n), slide = data.slides[s], i = n - first[s];
    const place = slide.captions.length ? slide.captions[i] : `${slide.id}, row ${slide.rows[i]} at ${slide.x[i]}, ${slide.y[i]}`;
    return slide.quality.length ? `${place}; ${slide.quality[i]}` : place;
  };
  const crop = (node, n) => {
    const s = slideOf(n), i = n - first[s];
    node.style.backgroundImage = `url(${data.slides[s].sprite})`;
    node.style.backgroundPosition = `${-(i % data.columns) * data.tile}px ${-Math.floor(i / data.columns) * data.tile}px`;
    return node;
  };

  const draw = (panel, s) => {
    const slide = data.slides[s], kind = panel.dataset.kind, box = panel.querySelector(".box");
    const svg = make("svg", { viewBox: `0 0 ${slide.w} ${slide.h}`, role: "img" });
    if (slide.high !== slide.side) { // its pixels are not square, its patches are
      svg.setAttribute("preserveAspectRatio", "none");
      svg.style.maxHeight = "none";
      svg.style.aspectRatio = `${slide.w * slide.high} / ${slide.h * slide.side}`;
    }
    svg.setAttribute("aria-label", `${panel.querySelector("figcaption").textContent} of ${slide.id}`);
    if (kind === "plain") {
      svg.setAttribute("tabindex", "0");
      svg.setAttribute("role", "application");
      svg.setAttribute("aria-describedby", "said");
    }
    if (slide.thumbnail) {
      make("image", { href: slide.thumbnail, width: slide.w, height: slide.h, preserveAspectRatio: "none" }, svg);
      if (kind !== "plain") make("rect", { class: "veil", width: slide.w, height: slide.h }, svg);
    }
    slide.rows.forEach((row, i) => {
      const rect = make("rect", { class: "patch", x: slide.x[i], y: slide.y[i], width: slide.side, height: slide.high, "data-n": first[s] + i }, svg);
      if (kind !== "plain") rect.style.fill = data.colours[kind][first[s] + i];
    });
    slide.contour.forEach((line) => make("polygon", { class: "outline", points: line.map((p) => p.join(",")).join(" ") }, svg));
    make("g", { class: "marks" }, svg);
    svg.addEventListener("mousemove", (event) => hover(event));
    svg.addEventListener("mouseleave", () => { tip.hidden = true; });
    svg.addEventListener("click", (event) => { const n = under(event); if (n !== null) choose(n); });
    if (kind === "plain") svg.addEventListener("keydown", (event) => keys(event));
    box.replaceChildren(svg);
  };
  const under = (event) => {
    const n = event.target.getAttribute("data-n");
    return n === null ? null : Number(n);
  };
  const hover = (event) => {
    const n = under(event);
    tip.hidden = n === null;
    if (n === null) return;
    crop($("tip-crop"), n);
    $("tip-text").textContent = describe(n);
    tip.style.left = Math.min(event.clientX + 14, innerWidth - 150) + "px";
    tip.style.top = Math.min(event.clientY + 14, innerHeight - 170) + "px";
  };

  const neighbours = (kind, n) => {
    const holder = $("near-" + kind);
    if (!holder) return;
    const other = kind === "teacher" ? "student" : "teacher";
    const both = data.neighbours[other] ? new Set(data.neighbours[other][n]) : new Set();
    holder.replaceChildren(...data.neighbours[kind][n].map((m) => {
      const figure = document.createElement("figure"), button = document.createElement("button"), text = document.createElement("figcaption");
      button.className = "crop" + (both.has(m) ? " same" : "");
      button.setAttribute("aria-label", "choose " + describe(m) + (both.has(m) ? ", near under both" : ""));
      crop(button, m).addEventListener("click", () => choose(m));
      text.textContent = describe(m);
      figure.append(button, text);
      return figure;
    }));
  };
  const mark = () => {
    const s = slideOf(chosen);
    document.querySelectorAll(".map").forEach((panel) => {
      const marks = panel.querySelector(".marks"), kind = panel.dataset.kind, slide = data.slides[s];
      marks.replaceChildren();
      const near = kind !== "plain" && data.neighbours[kind] ? data.neighbours[kind][chosen] : [];
      near.filter((m) => slideOf(m) === s).forEach((m) => square(marks, slide, m - first[s], "near"));
      square(marks, slide, chosen - first[s], "chosen");
    });
  };
  const square = (parent, slide, i, name) => make("rect", { class: name, x: slide.x[i], y: slide.y[i], width: slide.side, height: slide.high }, parent);

  const choose = (n, quiet) => {
    const before = slideOf(chosen), s = slideOf(n);
    chosen = n;
    if (s !== before || !document.querySelector(".map svg")) show(s);
    mark();
    crop($("now"), n);
    $("now-text").textContent = describe(n);
    neighbours("teacher", n);
    neighbours("student", n);
    if (!quiet) {
      said.textContent = describe(n);
      try { history.replaceState(null, "", "#patch=" + n); } catch (refused) { /* some browsers, for local files */ }
    }
  };
  const show = (s) => {
    const focused = document.activeElement && document.activeElement.closest(".map");
    document.querySelectorAll(".map").forEach((panel) => draw(panel, s));
    $("slide").value = String(s);
    const slide = data.slides[s];
    $("slide-text").textContent = `${slide.split}; ${slide.rows.length} of ${slide.all} patches shown`;
    if (focused) document.querySelector(".map.plain svg").focus();
  };
  const toward = (dx, dy) => {
    const s = slideOf(chosen), slide = data.slides[s], i = chosen - first[s];
    let best = null, least = Infinity;
    slide.rows.forEach((row, j) => {
      const x = slide.x[j] - slide.x[i], y = slide.y[j] - slide.y[i];
      const along = x * dx + y * dy, aside = Math.abs(x * dy) + Math.abs(y * dx);
      if (along <= 0 || along + 2 * aside >= least) return;
      least = along + 2 * aside;
      best = j;
    });
    return best === null ? chosen : first[s] + best;
  };
  const keys = (event) => {
    const s = slideOf(chosen), last = data.slides.length - 1;
    const moves = {
      ArrowLeft: () => toward(-1, 0), ArrowRight: () => toward(1, 0), ArrowUp: () => toward(0, -1), ArrowDown: () => toward(0, 1),
      Home: () => first[s], End: () => first[s] + data.slides[s].rows.length - 1,
      PageDown: () => first[Math.min(last, s + 1)], PageUp: () => first[Math.max(0, s - 1)],
    };
    if (!moves[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    choose(moves[event.key]());
  };

  data.slides.forEach((slide, s) => {
    const option = document.createElement("option");
    option.value = String(s);
    option.textContent = slide.id;
    $("slide").append(option);
  });
  $("slide").addEventListener("change", (event) => choose(first[Number(event.target.value)]));
  for (const name of ["grid", "outline"]) $("show-" + name).addEventListener("change", (event) => browser.classList.toggle("hide-" + name, !event.target.checked));
  const fromAddress = () => {
    const asked = /^#patch=(\d{1,7})$/.exec(location.hash);
    return asked && Number(asked[1]) < count ? Number(asked[1]) : Math.floor(data.slides[0].rows.length / 2);
  };
  addEventListener("hashchange", () => choose(fromAddress()));
  choose(fromAddress(), true);
  document.documentElement.dataset.ready = "yes";
})();
