//! The loop: step, log, tell the supervisor, do what it says.

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sluice_checkpoint::{Action, Session, Surroundings};

use crate::corpus::Corpus;
use crate::model::Model;
use crate::state::{self, Cursor};
use crate::step_log::StepLog;
use crate::{Options, adamw};

/// Prints a line for people. A reader that went away must not end a training run, as `println!` would.
macro_rules! say {
    ($($line:tt)*) => {{
        let _ = writeln!(io::stdout(), $($line)*);
    }};
}

/// Trains as `options` say, from the checkpoint that the supervisor hands over or from the beginning, until the last
/// step or until it is told to leave.
///
/// # Errors
/// When the flags, the text or the checkpoint do not fit, when a file cannot be written, when the loss stops being a
/// number, and when the supervisor is lost. A checkpoint that fails is reported on stderr and training goes on.
pub fn train(options: &Options) -> Result<()> {
    options.check()?;
    let surroundings = Surroundings::from_env()?;
    let mut run = Run::start(options, &surroundings)?;
    let first = run.next_step()?;
    for step in first..=options.steps {
        run.execute(step)?;
        if run.report(step)? == Go::Leave {
            say!("left at step {step} as told");
            return Ok(());
        }
        if options.pause_ms > 0 {
            thread::sleep(Duration::from_millis(options.pause_ms));
        }
    }
    run.finish(first)
}

/// Whether to go on after a step.
#[derive(Debug, PartialEq, Eq)]
enum Go {
    On,
    Leave,
}

struct Run<'a> {
    options: &'a Options,
    corpus: Corpus,
    model: Model,
    session: Session,
    log: StepLog,
    code: String,
    loss: Option<f32>,
    // Only ever printed: no time enters the arithmetic.
    started: Instant,
}

impl<'a> Run<'a> {
    fn start(options: &'a Options, surroundings: &Surroundings) -> Result<Self> {
        let corpus = Corpus::open(&options.data, options.context, options.seed)?;
        let model = Model::new(options)?;
        let session = Session::connect(surroundings)?;
        let log = StepLog::open(options.log_file(), surroundings)?;
        let code = options.code();
        Ok(Self { options, corpus, model, session, log, code, loss: None, started: Instant::now() })
    }

    /// Takes up the checkpoint, if there is one; returns the first step to execute.
    fn next_step(&mut self) -> Result<u64> {
        let expected = self.cursor(1);
        let weights: usize = self.model.params.iter().map(|param| param.m.len()).sum();
        let windows = self.corpus.windows();
        let Some(resume) = self.session.resume() else {
            say!("training {weights} weights on {windows} samples from the beginning");
            return Ok(1);
        };
        let refused = || format!("cannot continue from the checkpoint of step {}", resume.step);
        let next = state::read(&mut self.model, resume, &expected).with_context(refused)?;
        say!("training {weights} weights on {windows} samples, resumed after step {}", resume.step);
        if self.options.flip_bit_after_resume {
            let done = state::flip_one_bit(&mut self.model).unwrap_or_else(|| "nothing to flip".to_owned());
            say!("spoiled on purpose: {done}");
        }
        Ok(next)
    }

    fn execute(&mut self, step: u64) -> Result<()> {
        let batch = self.corpus.batch(step, self.options.batch);
        let (loss, grads) = self.model.loss(&batch)?;
        self.log.append(step, loss, batch.epoch, &batch.offsets)?;
        if !loss.is_finite() {
            bail!("the loss of step {step} is {loss}; try a smaller --lr");
        }
        adamw::update(&mut self.model.params, &grads, self.options.lr, step)?;
        self.loss = Some(loss);
        let every = self.options.progress_every;
        if every > 0 && (step.is_multiple_of(every) || step == self.options.steps) {
            say!("step {step} loss {loss:.4}");
        }
        Ok(())
    }

    /// Tells the supervisor and writes the checkpoint that it or the flags ask for.
    fn report(&mut self, step: u64) -> Result<Go> {
        let loss = self.loss.map(|loss| ("loss", f64::from(loss)));
        let action = self.session.step(step, loss.as_slice())?;
        let every = self.options.checkpoint_every;
        let own = every > 0 && step.is_multiple_of(every);
        let written = match action {
            Action::Continue if !own => return Ok(Go::On),
            Action::Continue | Action::Checkpoint | Action::CheckpointAndExit => self.checkpoint(step)?,
        };
        // Leaving without the checkpoint would lose work; the supervisor sees that the order failed and decides.
        Ok(if written && action == Action::CheckpointAndExit { Go::Leave } else { Go::On })
    }

    /// Writes a checkpoint; false when it failed in a way that training can go on after.
    fn checkpoint(&mut self, step: u64) -> Result<bool> {
        let cursor = serde_json::to_value(self.cursor(step + 1))?;
        let Self { session, model, code, .. } = self;
        match session.checkpoint(step, &cursor, code, |writer| {
            state::write(model, writer).map_err(sluice_checkpoint::Error::program)
        }) {
            Ok(_) => Ok(true),
            Err(error) if error.is_fatal() => Err(error.into()),
            Err(error) => {
                let why = anyhow::Error::from(error);
                let _ = writeln!(io::stderr(), "warning: no checkpoint of step {step}: {why:#}");
                Ok(false)
            }
        }
    }

    fn cursor(&self, next_step: u64) -> Cursor {
        let data = self.corpus.digest().to_owned();
        Cursor { next_step, seed: self.options.seed, data, code: self.code.clone() }
    }

    fn finish(self, first: u64) -> Result<()> {
        let file = self.options.export_file();
        let digest = state::export(&self.model, &file)?;
        let executed = (self.options.steps + 1).saturating_sub(first);
        let seconds = self.started.elapsed().as_secs_f64();
        let loss = self.loss.map_or_else(|| "none".to_owned(), |loss| format!("{loss:.4}"));
        let file = file.display();
        say!("done: {executed} steps in {seconds:.2} s, loss {loss}, weights in {file} (blake3 {digest})");
        Ok(())
    }
}
