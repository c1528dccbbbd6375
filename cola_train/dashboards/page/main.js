// The page: its sections, and what is new while training runs.

function show() {
  const main = document.querySelector('main');
  const heading = element('section', {}, runTable());
  const sections = [heading, curvesSection(), healthSection(), spectraSection(), settingsSection()];
  main.replaceChildren(...sections.filter((section) => section !== null));
  sayWhen();
  for (const group of GROUPS) for (const plot of group.plots) plot.draw();
}

function sayWhen(trouble = '') {
  const { made, refresh } = DATA.now;
  const at = new Date(made * 1000).toLocaleString('sv'); // as 2026-11-26 09:30:00
  const again = refresh === null ? '' : `, again every ${duration(refresh)}`;
  document.getElementById('when').textContent = trouble || `as of ${at}${again}`;
}

/** What the server has; the same page with it if that is new. */
let tag = null;
async function ask() {
  if (document.querySelector(':active')) return; // not under a finger or a pressed button
  try {
    const answer = await fetch('data.json', { headers: tag ? { 'If-None-Match': tag } : {}, cache: 'no-store' });
    if (answer.status === 304) return;
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    DATA.now = await answer.json();
    tag = answer.headers.get('ETag');
    CHOSEN.range = TRAINING.range;
    show();
  } catch (error) {
    sayWhen(`nothing new: ${error.message}`);
  }
}

function begin() {
  show();
  const { refresh, served } = DATA.now;
  if (refresh !== null && served) setInterval(ask, refresh * 1000);
  else if (refresh !== null) setTimeout(loadAgain, refresh * 1000);
}

function leave() {
  CHOSEN.range = TRAINING.range;
  keepChoices();
}

function loadAgain() {
  leave(); // another process may have the next page, and read what is kept before this one is left
  location.reload();
}

window.addEventListener('scroll', drawDue, { passive: true });
window.addEventListener('resize', () => GROUPS.forEach((group) => group.draw()));
window.addEventListener('pagehide', leave);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', show);
begin();
