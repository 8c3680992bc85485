"use strict";
const form = document.getElementById("choose");
if (form) {
  const words = document.getElementById("words");
  const label = document.getElementById("label");
  const fate = document.getElementById("fate");
  const rows = Array.from(document.querySelectorAll("#texts tbody tr"));
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const show = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, at) => {
      const { label: of, fate: end, reason } = row.dataset;
      const fits = (!label.value || of === label.value)
        && (!fate.value || end === fate.value || reason === fate.value)
        && wanted.every((word) => texts[at].includes(word));
      row.hidden = !fits;
      shown += fits;
    });
    document.getElementById("shown").textContent = `${shown} of ${rows.length} shown`;
    document.getElementById("none").hidden = shown > 0;
  };
  form.hidden = false;
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
}
