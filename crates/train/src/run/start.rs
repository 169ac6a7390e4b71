//! From a job to a run: every check that can be made before the first step, and what it begins with.

use super::{AnyDocuments, Data, Files, Init, Job, KEPT, Run, agree, pace};
use crate::checkpoint::{self, CheckpointError, FORMAT_VERSION, Found, OPTIMIZER, State, Writer};
use crate::error::{Difference, TrainError};
use crate::estimate;
use crate::evaluate::Subset;
use crate::event::{Event, Observer};
use crate::guard::Guard;
use crate::health::Watch;
use crate::lock::Lock;
use crate::metrics::{Metrics, RunFile, plan_of_run, write_run};
use crate::schedule::Plan;
use crate::settings::{BUDGET, HARMLESS, TrainSettings};
use crate::step::Learner;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use wudao_data::batch::{Layout, TrainStream};
use wudao_data::manifest::TOKENIZER_FILE;
use wudao_data::shard::Documents;
use wudao_data::tokenizer::{TOKENIZER_CONFIG_FILE, Tokenizer};
use wudao_device::Device;
use wudao_model::{Config, Counts, weights};

impl<'a, D: Device> Run<'a, D> {
    /// Checks, locks, loads, and fixes the number of steps.
    pub(super) fn start(job: &'a Job<'a, D>, observer: &mut dyn Observer) -> Result<Self, TrainError> {
        let begin = Instant::now();
        let (comm, settings, config) = (job.comm, job.settings, job.config);
        let accumulation = check(job)?;
        let operands = settings.dtype.operands();
        let estimate = match job.available_memory {
            Some(bytes) => estimate::check(config, settings, comm.size(), operands, bytes)?,
            None => estimate::estimate(config, settings, comm.size(), operands)?,
        };
        let (lock, found) = agree(comm, take_folder(job, observer))?;
        let found = share(job, found)?;

        let layout = Layout {
            seq_len: settings.seq_len,
            rows: settings.micro_batch_size,
            end_of_text: job.data.stamp.end_of_text,
            vocab_size: job.data.stamp.vocab_size,
            rank: comm.rank(),
            size: comm.size(),
        };
        let train: AnyDocuments<'a> = job.data.train;
        let mut stream = TrainStream::new(train, layout, settings.seed)?;
        let held_out = Subset::new(job.data.validation, settings.eval_tokens);
        let mut learner = Learner::new(job.device, comm, config, settings, operands)?;
        let state = match &found {
            Some(found) => {
                let loaded = stream.seek(found.state.cursor).map_err(TrainError::from);
                let loaded =
                    loaded.and_then(|()| Ok(weights::load(job.device, &found.path, config, &mut learner.weights)?));
                agree(comm, loaded)?;
                found.state.clone()
            }
            None => {
                match job.init {
                    Init::From(dir) => {
                        let loaded = weights::load(job.device, dir, config, &mut learner.weights);
                        agree(comm, loaded.map_err(TrainError::from))?;
                    }
                    Init::Fresh | Init::Resume => {
                        learner.model.fill(job.device, settings.seed, &mut learner.weights);
                    }
                }
                State {
                    format: FORMAT_VERSION,
                    step: 0,
                    updates: 0,
                    tokens: 0,
                    cursor: stream.cursor(),
                    guard: Guard::default(),
                    best: None,
                    plan: Plan::new(settings, 1),
                    tokenizer: job.tokenizer.hash().into(),
                    data: job.data.fingerprint.clone(),
                    settings: settings.clone(),
                }
            }
        };

        let mut run = Run {
            job,
            learner,
            stream,
            accumulation,
            held_out,
            last: found.as_ref().map(|f| (f.state.step, f.path.clone())),
            best_before: state.best,
            state,
            evaluation: None,
            counts: Counts::of(config),
            watch: Watch::default(),
            pace: pace::Pace::default(),
            copies: estimate.copies(),
            files: None,
        };
        // Rehearsals forget the moments, so these are loaded after them.
        run.state.plan = run.plan(found.as_ref(), begin)?;
        run.state.settings = settings.clone();
        if let Some(found) = &found {
            let loaded = run.learner.optimizer.load(job.device, &found.path.join(OPTIMIZER), found.state.updates);
            agree(comm, loaded.map_err(TrainError::from))?;
        }
        let files = lock.map(|lock| run.open_files(lock)).transpose();
        run.files = agree(comm, files)?;
        if run.held_out.documents() == 0 {
            let text = "the data has no held-out documents: nothing will be evaluated, no checkpoint will be the best";
            observer.on(&Event::Warning(text.into()));
        }
        if !estimate.copies() {
            let text =
                "memory has no room for a copy of weights and moments: training waits while a checkpoint is written";
            observer.on(&Event::Warning(text.into()));
        }
        observer.on(&Event::Started(run.started(estimate, found.map(|f| f.path))));
        Ok(run)
    }

    /// The course: of the checkpoint, of the run that began here with the same settings, or a new one.
    fn plan(&mut self, found: Option<&Found>, begin: Instant) -> Result<Plan, TrainError> {
        let (job, settings) = (self.job, self.job.settings);
        let Some(found) = found else {
            // A run that was killed before its first checkpoint had measured its speed already.
            let began = matches!(job.init, Init::Resume).then(|| plan_of_run(job.out, settings)).flatten();
            let mut steps = [began.filter(|_| job.comm.rank() == 0).map_or(0.0, |plan| plan.steps as f64)];
            job.comm.all_reduce_host(&mut steps)?;
            if steps[0] > 0.0 {
                return Ok(Plan::new(settings, steps[0] as u64));
            }
            return Ok(Plan::new(settings, self.affordable(begin)?));
        };
        let saved = &found.state;
        let differ = saved.settings.differences(settings);
        let budget: Vec<String> = differ.into_iter().filter(|k| BUDGET.contains(&k.as_str())).collect();
        if budget.is_empty() {
            return Ok(saved.plan);
        }
        // Minutes that did not change are the steps that they were; new ones count from now.
        let affordable = if saved.settings.max_minutes == settings.max_minutes {
            saved.plan.steps
        } else {
            saved.step + self.affordable(begin)?
        };
        let plan = Plan::new(settings, affordable);
        if !plan.agrees(&saved.plan, saved.step) {
            return Err(TrainError::Schedule { path: found.path.clone(), keys: budget.join(", "), step: saved.step });
        }
        Ok(plan)
    }

    /// Steps that fit into the minutes, if there is such a limit.
    fn affordable(&mut self, begin: Instant) -> Result<u64, TrainError> {
        let Some(minutes) = self.job.settings.max_minutes else { return Ok(1) };
        let (stream, held_out) = (self.stream.clone(), self.held_out.clone());
        pace::affordable(self.job, &mut self.learner, &stream, self.accumulation, &held_out, minutes, begin)
    }

    /// Makes the folder ready for the run: record, settings, tokenizer.
    fn open_files(&mut self, lock: Lock) -> Result<Files, TrainError> {
        let (job, out) = (self.job, self.job.out);
        job.tokenizer.save(out)?;
        write_run(
            out,
            &RunFile {
                created_by: concat!("wudao ", env!("CARGO_PKG_VERSION")).into(),
                settings: job.settings.clone(),
                model: job.config.clone(),
                parameters: (self.counts.params.total(), self.counts.active.total()),
                plan: self.state.plan,
                tokenizer: job.tokenizer.hash().into(),
                sources: job.data.sources.clone(),
                machine: job.machine.clone(),
            },
        )?;
        Ok(Files {
            _lock: lock,
            metrics: Metrics::open(out, self.state.step)?,
            writer: Writer::new(out, job.settings.keep_last)?,
            tokenizer: Arc::new(tokenizer_files(out)?),
        })
    }
}

/// Checks that need no file. Returns the number of micro-batches of a step.
fn check<D: Device>(job: &Job<D>) -> Result<usize, TrainError> {
    let (settings, config) = (job.settings, job.config);
    settings.check()?;
    config.check()?;
    settings.check_model(config, job.comm.size())?;
    let Data { stamp, train, .. } = &job.data;
    if job.tokenizer.hash() != stamp.sha256 {
        let (given, recorded) = (job.tokenizer.hash().to_owned(), stamp.sha256.clone());
        return Err(TrainError::Tokenizer { given, recorded });
    }
    if config.vocab_size < stamp.vocab_size as usize {
        return Err(TrainError::VocabSize { model: config.vocab_size, data: stamp.vocab_size });
    }
    if config.end_of_text() != Some(stamp.end_of_text) {
        return Err(TrainError::EndOfText { model: config.end_of_text(), data: stamp.end_of_text });
    }
    if train.documents() == 0 {
        return Err(TrainError::NoText);
    }
    if let Init::From(dir) = job.init {
        same_tokenizer(dir, job.tokenizer)?;
    }
    Ok(settings.accumulation(job.comm.size())?)
}

/// The weights to begin with must have been learned on the same ids. Other files may say the same: what counts is what
/// each id means. A folder without a tokenizer is taken at its word.
fn same_tokenizer(from: &Path, ours: &Tokenizer) -> Result<(), TrainError> {
    let path = from.join(TOKENIZER_FILE);
    if !path.exists() {
        return Ok(());
    }
    let theirs = Tokenizer::load(&path)?;
    if theirs.hash() == ours.hash() {
        return Ok(());
    }
    let most = theirs.vocab_size().max(ours.vocab_size()) as u32;
    let text =
        |t: &Tokenizer, id| t.token_bytes(id).map(|b| String::from_utf8_lossy(b).into_owned()).unwrap_or_default();
    match (0..most).find(|&id| theirs.token_bytes(id) != ours.token_bytes(id)) {
        Some(id) => {
            let example = Some((id, text(&theirs, id), text(ours, id)));
            Err(TrainError::OtherTokenizer { from: from.into(), example })
        }
        None => Ok(()),
    }
}

/// On the first rank: makes the folder, locks it, removes what an interrupted save has left, and finds the checkpoint to
/// go on from.
#[allow(clippy::type_complexity)]
fn take_folder<D: Device>(
    job: &Job<D>,
    observer: &mut dyn Observer,
) -> Result<(Option<Lock>, Option<Found>), TrainError> {
    if job.comm.rank() > 0 {
        return Ok((None, None));
    }
    let out = job.out;
    fs::create_dir_all(out).map_err(TrainError::io(out, "create"))?;
    let lock = Lock::take(out)?;
    checkpoint::sweep(out)?;
    if !matches!(job.init, Init::Resume) {
        let checkpoints = checkpoint::count(out)?;
        if checkpoints > 0 {
            return Err(TrainError::Occupied { out: out.into(), checkpoints });
        }
        return Ok((Some(lock), None));
    }
    let found = match checkpoint::find(out)? {
        Ok(found) => found,
        Err(broken) if broken.is_empty() => {
            let text = format!("{} has no checkpoint to go on from: the run begins anew", out.display());
            observer.on(&Event::Warning(text));
            return Ok((Some(lock), None));
        }
        // To begin anew would end the record of what was learned; that is for a person to decide.
        Err(broken) => {
            return Err(CheckpointError::NoneUsable { folder: out.join(checkpoint::CHECKPOINTS), broken }.into());
        }
    };
    // First whether the run may go on at all; nothing is moved for one that may not.
    same_settings(&found, job.settings)?;
    same_model(&found, job.config)?;
    if found.state.tokenizer != job.tokenizer.hash() {
        let (given, recorded) = (job.tokenizer.hash().to_owned(), found.state.tokenizer.clone());
        return Err(TrainError::Tokenizer { given, recorded });
    }
    if let (Some(then), Some(now)) = (&found.state.data, &job.data.fingerprint)
        && then != now
    {
        return Err(TrainError::OtherData { path: found.path, then: then.clone(), now: now.clone() });
    }
    set_aside(&found, observer)?;
    Ok((Some(lock), Some(found)))
}

/// Names the newer checkpoints that are not whole and takes them out of the way.
fn set_aside(found: &Found, observer: &mut dyn Observer) -> Result<(), TrainError> {
    for b in &found.broken {
        let kept = checkpoint::set_aside(b)?;
        let kept = kept.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let good = found.path.display();
        observer.on(&Event::Warning(format!("{b}; it is now called {kept}, and the run goes on from {good}")));
    }
    Ok(())
}

/// Tells the other ranks which checkpoint the first has found.
fn share<D: Device>(job: &Job<D>, found: Option<Found>) -> Result<Option<Found>, TrainError> {
    if job.comm.size() == 1 {
        return Ok(found);
    }
    let mut step = [found.as_ref().map_or(0.0, |f| f.state.step as f64)];
    job.comm.all_reduce_host(&mut step)?;
    match found {
        None if step[0] > 0.0 => Ok(Some(checkpoint::open(job.out, step[0] as u64)?)),
        found => Ok(found),
    }
}

/// A run goes on with the settings it began with, but for those that change nothing, or only its length.
fn same_settings(found: &Found, settings: &TrainSettings) -> Result<(), TrainError> {
    let then = &found.state.settings;
    let keys = then.differences(settings);
    let free = |key: &String| HARMLESS.contains(&key.as_str()) || BUDGET.contains(&key.as_str());
    let value = |s: &TrainSettings, key: &str| {
        serde_json::to_value(s).ok().and_then(|v| v.get(key).map(ToString::to_string)).unwrap_or("not set".into())
    };
    let differences: Vec<Difference> = keys
        .into_iter()
        .filter(|key| !free(key))
        .map(|key| Difference { then: value(then, &key), now: value(settings, &key), key })
        .collect();
    if differences.is_empty() { Ok(()) } else { Err(TrainError::Differs { path: found.path.clone(), differences }) }
}

/// The checkpoint's model must be the configured one, as far as a `config.json` tells.
fn same_model(found: &Found, config: &Config) -> Result<(), TrainError> {
    let then = weights::read_config(&found.path)?;
    let now = Config::from_json(config.to_json(KEPT).as_bytes())?;
    if then == now {
        return Ok(());
    }
    let table = |c: &Config| serde_json::to_value(c).unwrap_or_default();
    let (then, now) = (table(&then), table(&now));
    let keys = then.as_object().into_iter().flat_map(|o| o.keys()).filter(|k| then.get(*k) != now.get(*k));
    let differences: Vec<String> =
        keys.map(|k| format!("{k} = {} (now {})", then[k.as_str()], now[k.as_str()])).collect();
    Err(TrainError::OtherModel { path: found.path.clone(), difference: differences.join(", ") })
}

/// The tokenizer's files as the tokenizer wrote them into the run's folder.
fn tokenizer_files(out: &Path) -> Result<Vec<(String, Vec<u8>)>, TrainError> {
    let mut files = vec![];
    for name in [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE] {
        let path = out.join(name);
        if path.exists() {
            files.push((name.to_owned(), fs::read(&path).map_err(TrainError::io(&path, "read"))?));
        }
    }
    Ok(files)
}
