// The options in which the runs differ.

function settingsSection() {
  const { rows, same } = DATA.now.settings;
  const all = runs();
  if (all.length < 2) return null;
  const section = element('section', { id: 'settings' }, element('h2', { textContent: 'What differs' }));
  if (rows.length) {
    const head = ['option', ...all.map((run) => run.name)].map((name) => element('th', { scope: 'col', textContent: name }));
    const body = rows.map(([name, ...cells]) => element('tr', {}, element('th', { scope: 'row', textContent: name }),
      ...cells.map((textContent) => element('td', { textContent }))));
    section.append(element('div', { className: 'wide' }, element('table', { className: 'settings' },
      element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...body))));
  }
  const others = rows.length ? 'other options are' : 'options are';
  section.append(element('p', { className: 'note', textContent: `${same} ${others} the same in all runs.` }));
  return section;
}
