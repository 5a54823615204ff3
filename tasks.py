"""What one does with this repository, as plain calls: python3 -m tasks env|demo|test|lab|bench|readme

env     build or refresh .venv (every other task does so first)
demo    a real photo becomes an expression on every character; ends with the path of the picture
test    [WORD ...] all notebooks, or those with a WORD in their name, and that generated files are in step
lab     open the notebooks in JupyterLab
bench   measure speed on this computer, then draw the whole database and check every character (some 20 minutes)
readme  write README.md from notebooks/index.ipynb
"""
# Runs before anything is installed: standard library only, and old Pythons must get as far as the message below.
import ctypes.util, hashlib, json, os, posixpath, re, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT/'.venv'
PY = VENV/('Scripts/python.exe' if os.name=='nt' else 'bin/python')
STAMP = VENV/'exprgen-env.txt' # what the environment was built from
NEED = (3,11)
LIBS = {'GL':'libgl1', 'EGL':'libegl1', 'GLESv2':'libgles2'} # library -> Debian package; OpenCV and MediaPipe load them
LIMIT = 600 # seconds that one notebook may take
DRIVEN = ('92_browser','browser','rater','study_page','triplet_bench') # notebooks that drive a browser
PASSED, SKIPPED = 10, 11 # exit statuses of `_run_notebook`; everything else, 0 included, is a failure

def say(*a): print(*a, flush=True)

def environ(**kw):
    "The environment of every process started here; this folder's code comes first"
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get('PYTHONPATH')) if p)
    return dict(os.environ, PYTHONPATH=path, PYTHONUNBUFFERED='1', **kw)

def call(*args, env=None):
    "Run a command in the repository, ending with its exit status when it fails"
    r = subprocess.call([str(a) for a in args], cwd=str(ROOT), env=env or environ())
    if r: sys.exit(r if r>0 else 1)

# environment

def _version(python):
    "(3,11) of a Python, None when it does not start"
    try: out = subprocess.check_output([str(python), '-c', 'import sys; print(*sys.version_info[:2])'], stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError): return None
    return tuple(map(int, out.split()))

def _python():
    "A Python that is new enough: this one, else one on the path"
    if sys.version_info>=NEED: return sys.executable
    for minor in (11, 12, 13):
        p = shutil.which('python3.{}'.format(minor))
        if p and _version(p): return p
    sys.exit('This is Python {}.{} ({}); Python {}.{} or newer is needed. Install one, then type: python3.{} -m tasks {}'.format(
        *sys.version_info[:2], sys.executable, *NEED, NEED[1], ' '.join(sys.argv[1:]) or 'env'))

def _apt(packages, why):
    "Install system packages when we may, else name the line to type"
    line = 'apt-get install -y '+' '.join(packages)
    if hasattr(os, 'geteuid') and os.geteuid()==0 and shutil.which('apt-get'):
        say('Installing {} ({}).'.format(' '.join(packages), why))
        quiet = dict(stdout=subprocess.DEVNULL, env=dict(os.environ, DEBIAN_FRONTEND='noninteractive'))
        if subprocess.call(['apt-get','install','-y','--no-install-recommends',*packages], stderr=subprocess.DEVNULL, **quiet)==0: return True
        if subprocess.call(['apt-get','update'], **quiet)==0 and subprocess.call(['apt-get','install','-y','--no-install-recommends',*packages], **quiet)==0: return True
    say('Missing on this computer: {}. Please type: sudo {}   (without apt: the packages of your system that hold the same)'.format(why, line))
    return False

def _stamp(): return '{}\n{}\n'.format(hashlib.sha256((ROOT/'pyproject.toml').read_bytes()).hexdigest(), ROOT)

def env():
    "Build `.venv`, or find that it is up to date"
    if PY.exists() and STAMP.exists() and STAMP.read_text()==_stamp(): return
    tic, python = time.time(), _python()
    missing = [l for l in LIBS if not ctypes.util.find_library(l)] if sys.platform.startswith('linux') else []
    if missing: _apt([LIBS[l] for l in missing], 'lib'+', lib'.join(missing)+' for OpenCV and MediaPipe')
    found = _version(PY) if PY.exists() else None
    pip = [PY, '-m', 'pip', '--disable-pip-version-check']
    if found is None or found<NEED or subprocess.call([str(a) for a in pip]+['--version'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        if subprocess.call([python, '-c', 'import ensurepip, venv'], stderr=subprocess.DEVNULL):
            if not _apt(['python{}.{}-venv'.format(*_version(python))], "Python's venv module"): sys.exit(1)
        say('Building {} from {}. It takes about 2.8 GB from the Python package index (most of it PyTorch) and 7 GB on the disk; about 100 s on a fast line.'.format(VENV, python))
        call(python, '-m', 'venv', '--clear', VENV)
    else: say('Bringing {} up to date with pyproject.toml. What is missing is taken from the Python package index, at most about 2.8 GB.'.format(VENV))
    if STAMP.exists(): STAMP.unlink()
    call(*pip, 'install', '--no-input', '-e', '.[dev]', env=dict(os.environ)) # without our PYTHONPATH, in which pip would find a package installed by nobody
    if subprocess.call([str(PY), '-c', 'import cv2'], env=environ()): sys.exit('OpenCV does not start (above); the line to type stands further up.')
    STAMP.write_text(_stamp())
    say('Environment ready after {:.0f} s.'.format(time.time()-tic))

# demo, lab, bench

PHOTO = "import skimage.data, skimage.io, sys; skimage.io.imsave(sys.argv[1], skimage.data.astronaut(), check_contrast=False)"

def demo():
    "The photo of an astronaut that scikit-image ships, beside the characters"
    env()
    photo, out = ROOT/'out'/'photo'/'astronaut.png', ROOT/'out'
    if not photo.exists():
        photo.parent.mkdir(parents=True, exist_ok=True); half = photo.with_name('half.png')
        call(PY, '-c', PHOTO, half); os.replace(str(half), str(photo))
    call(PY, '-m', 'exprgen_nb.cli', 'transfer', photo.relative_to(ROOT), '--out', out.relative_to(ROOT), '--verbose')
    say(out/'astronaut.png')

def lab():
    "JupyterLab in the folder of the notebooks"
    env()
    root = ['--allow-root'] if hasattr(os, 'geteuid') and os.geteuid()==0 else []
    call(PY, '-m', 'jupyterlab', '--notebook-dir=notebooks', *root)

def bench(): env(); call(PY, '-m', 'exprgen_nb.cli', 'bench', '--sweeps')

# README

def _links(text, folder):
    "Links and pictures of a page in `folder`, as seen from the top"
    def there(m): return m.group(1)+(m.group(2) if re.match(r'\w+:|#|/', m.group(2)) else posixpath.normpath(posixpath.join(folder, m.group(2))))
    return re.sub(r'(\]\(|src=")([^)\s"]+)', there, text)

def readme_text(notebook):
    "A notebook as Markdown: prose, code in fences, printed results; cells with `#| hide` are left out"
    out = []
    for c in json.loads(Path(notebook).read_text(encoding='utf-8'))['cells']:
        s = ''.join(c['source'])
        if c['cell_type']=='markdown':
            parts = re.split(r'(^```.*?^```)', s, flags=re.M|re.S) # odd parts are code, whose brackets are no links
            out.append(''.join(p if i%2 else _links(p, Path(notebook).parent.name) for i,p in enumerate(parts)))
        elif c['cell_type']=='code' and not re.search(r'^#\|\s*(hide|default_exp)', s, re.M):
            out.append('```python\n'+re.sub(r'^#\|.*\n', '', s, flags=re.M)+'\n```')
            for o in c['outputs']:
                t = o.get('text') or o.get('data', {}).get('text/plain') or []
                if t: out.append('```\n'+''.join(t).rstrip()+'\n```')
    return '<!-- made from notebooks/index.ipynb by `make readme`: edit that -->\n\n'+'\n\n'.join(out)+'\n'

def readme():
    "Write README.md"
    new = ROOT/'README.tmp'
    new.write_text(readme_text(ROOT/'notebooks'/'index.ipynb'), encoding='utf-8'); os.replace(str(new), str(ROOT/'README.md'))
    say(ROOT/'README.md')

# tests

def _differ(a, b, pattern):
    "Files of that pattern that are not equal, byte for byte, in two folders"
    names = {p.relative_to(d).as_posix() for d in (a,b) for p in d.glob(pattern)}
    read = lambda p: p.read_bytes() if p.exists() else None
    return [n for n in sorted(names) if read(a/n)!=read(b/n)]

def _in_step():
    "(name, complaint or '') for what is generated, made anew in a copy of the tree"
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)/'copy'; d.mkdir()
        for f in ('pyproject.toml','settings.ini','README.md','LICENSE'): shutil.copy2(str(ROOT/f), str(d/f))
        for f in ('notebooks','nbs_tests'): shutil.copytree(str(ROOT/f), str(d/f), ignore=shutil.ignore_patterns('.ipynb_checkpoints','images'))
        (d/'exprgen_nb').mkdir(); shutil.copy2(str(ROOT/'exprgen_nb'/'__init__.py'), str(d/'exprgen_nb'/'__init__.py'))
        e = dict(environ(), PYTHONPATH=str(d)); e.pop('IN_TEST', None)
        def run(code):
            r = subprocess.run([str(PY), '-c', code], cwd=str(d), env=e, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            return r.stdout.decode(errors='replace') if r.returncode else ''
        bad = run('from nbdev.doclinks import nbdev_export\nnbdev_export()')
        old = [] if bad else _differ(ROOT, d, 'exprgen_nb/*.py')
        yield 'exported code', bad or (old and 'not what the notebooks say: {}. Type: .venv/bin/nbdev-export'.format(', '.join(old)))
        bad = run("from nbdev.clean import nbdev_clean\nnbdev_clean()\nnbdev_clean(fname='nbs_tests')")
        old = [] if bad else _differ(ROOT, d, 'notebooks/*.ipynb')+_differ(ROOT, d, 'nbs_tests/*.ipynb')
        yield 'clean notebooks', bad or (old and 'not clean: {}. Type: .venv/bin/nbdev-clean && .venv/bin/nbdev-clean --fname nbs_tests'.format(', '.join(old)))
        same = (ROOT/'README.md').read_text(encoding='utf-8')==readme_text(ROOT/'notebooks'/'index.ipynb')
        yield 'README.md', '' if same else 'not what notebooks/index.ipynb says. Type: make readme'

def _run_notebook(fn):
    "In a process of its own: one notebook through nbdev, where nbdev would run it"
    from nbdev.config import get_config
    from nbdev.test import nb_test_cells, test_nb
    flags = get_config(ROOT).tst_flags; flags = flags.split() if isinstance(flags, str) else list(flags)
    if not nb_test_cells(fn, flags): return SKIPPED
    ok,_ = test_nb(fn, skip_flags=flags, basepath=ROOT)
    return PASSED if ok else 1

def _chromium():
    "What is wrong when the browser tests have no browser, else ''; Debian's is installed when we may"
    def look():
        r = subprocess.run([str(PY), '-c', 'from exprgen_nb.browser import find_chromium; find_chromium()'], cwd=str(ROOT), env=environ(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        return r.stderr.decode(errors='replace').strip().rpartition('\n')[2] if r.returncode else ''
    bad = look()
    return look() if 'no Chromium' in bad and _apt(['chromium'], 'Chromium for the tests of the widgets') else bad

class _Job:
    "A notebook that is being tested"
    def __init__(self, fn):
        self.fn, self.tic, self.log = fn, time.time(), tempfile.TemporaryFile()
        env = environ(IN_TEST='1', OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MPLBACKEND='agg', PYTHONFAULTHANDLER='1')
        self.p = subprocess.Popen([str(PY), '-m', 'tasks', 'notebook', str(fn)], cwd=str(ROOT), env=env, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True)
    def stop(self):
        "End the notebook's process and all that it started"
        if os.name=='nt': self.p.kill()
        else: os.killpg(self.p.pid, signal.SIGKILL)
        self.p.wait()
    def outcome(self):
        "None while it runs, else (status, text)"
        r, why = self.p.poll(), ''
        if r is None:
            if time.time()-self.tic<LIMIT: return None
            self.stop(); r, why = 1, '\nstopped after {} s'.format(LIMIT)
        status = {PASSED:'ok', SKIPPED:'skipped'}.get(r, 'FAILED')
        if status!='FAILED': return status, ''
        self.log.seek(0); text = re.sub(r'\x1b\[[0-9;]*m', '', self.log.read().decode(errors='replace'))
        return status, text[-20000:].rstrip()+(why or '\nexit status {}'.format(r))

def test(*words):
    "Everything that can be tested without a GPU and without licensed data"
    env()
    n = dict(ok=0, FAILED=0, skipped=0)
    def tell(name, seconds, status, text=''):
        n[status] += 1; say('{:<44}{:7.1f} s  {}'.format(name, seconds, status))
        if text: say(text+'\n')
    if not words:
        tic = time.time()
        for name,bad in _in_step(): tell(name, time.time()-tic, 'FAILED' if bad else 'ok', bad); tic = time.time()
    todo = [f for d in ('notebooks','nbs_tests') for f in sorted((ROOT/d).glob('*.ipynb')) if not words or any(w in f.name for w in words)]
    if any(f.stem in DRIVEN for f in todo):
        tic, bad = time.time(), _chromium()
        if bad: tell('Chromium', time.time()-tic, 'FAILED', bad)
    jobs = []
    try:
        while todo or jobs:
            while todo and len(jobs)<2:
                f = next((f for f in todo if f.stem not in DRIVEN or not any(j.fn.stem in DRIVEN for j in jobs)), None) # one browser at a time
                if f is None: break
                todo.remove(f); jobs.append(_Job(f))
            for j in jobs[:]:
                o = j.outcome()
                if o: jobs.remove(j); tell(j.fn.relative_to(ROOT).as_posix(), time.time()-j.tic, *o)
            time.sleep(.1)
    finally:
        for j in jobs: j.stop()
    say('{} passed, {} failed'.format(n['ok'], n['FAILED'])+(', {} skipped'.format(n['skipped']) if n['skipped'] else ''))
    return int(n['FAILED']>0 or n['ok']==0)

def main(argv):
    tasks = dict(env=env, demo=demo, test=test, lab=lab, bench=bench, readme=readme)
    if len(argv)==2 and argv[0]=='notebook': return _run_notebook(Path(argv[1])) # what `test` starts
    if not argv or argv[0] not in tasks or (argv[1:] and argv[0]!='test'): say(__doc__.strip()); return 2
    return tasks[argv[0]](*argv[1:]) or 0

if __name__=='__main__': sys.exit(main(sys.argv[1:]))
