//! An engine that computes nothing: its logits are a function of the tokens before, its steps take virtual time by a cost
//! model. For tests of everything around it, and for the simulated world. Deterministic.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use sluice_proto::v1::EngineMessage;

use crate::clock::Clock;
use crate::cost::{CostModel, Shape};
use crate::engine::{Engine, EngineError, Facts, Feed, Marks, Slot, Vocabulary};

/// A token for each byte, and one that ends the text.
const END: u32 = 256;
const SIZE: u32 = 257;

/// Virtual time, shared by an engine and whoever reads it.
#[derive(Debug, Clone, Default)]
pub struct VirtualClock(Rc<Cell<u64>>);

impl VirtualClock {
    /// Lets so many nanoseconds pass.
    pub fn pass(&self, nanos: u64) {
        self.0.set(self.0.get().saturating_add(nanos));
    }
}

impl Clock for VirtualClock {
    fn monotonic(&self) -> u64 {
        self.0.get()
    }

    fn cpu(&self) -> u64 {
        self.0.get()
    }

    fn unix_millis(&self) -> u64 {
        self.0.get() / 1_000_000
    }
}

/// The engine.
#[derive(Debug)]
pub struct SimulatedEngine {
    facts: Facts,
    slots: Vec<Option<Context>>,
    logits: Vec<Vec<f32>>,
    cost: CostModel,
    clock: VirtualClock,
    /// Fails the step that many steps from now.
    pub fail_in: Option<u32>,
    /// Mixes sequences up: what a test of crossed sequences must notice.
    pub crossed: bool,
    /// Steps take real time too.
    paced: bool,
}

#[derive(Debug, Clone, Copy)]
struct Context {
    state: u64,
    length: u32,
}

impl SimulatedEngine {
    /// An engine of this size, whose steps take what `cost` says.
    #[must_use]
    pub fn new(facts: Facts, cost: CostModel, clock: VirtualClock) -> Self {
        let slots = vec![None; facts.slots as usize];
        Self { facts, slots, logits: Vec::new(), cost, clock, fail_in: None, crossed: false, paced: false }
    }

    /// The same as [`SimulatedEngine::small`], in real time.
    #[must_use]
    pub fn paced() -> Self {
        Self { paced: true, ..Self::small(VirtualClock::default()) }
    }

    /// About what a small model does on one core.
    #[must_use]
    pub fn small(clock: VirtualClock) -> Self {
        let facts =
            Facts { context: 2_048, cells: 8_192, slots: 10, batch: 512, threads: 1, kernels: "simulated".to_owned() };
        Self::new(facts, CostModel::new(4e6, 4e6, 2e6, 0.5e6), clock)
    }

    /// The time that its steps take.
    #[must_use]
    pub fn clock(&self) -> VirtualClock {
        self.clock.clone()
    }

    fn used(&self) -> u32 {
        self.slots.iter().flatten().map(|context| context.length).sum()
    }

    fn feed(&mut self, feed: &Feed) {
        let other = self.crossed.then(|| self.slots.iter().flatten().map(|context| context.state).max()).flatten();
        let Some(Some(context)) = self.slots.get_mut(feed.slot as usize) else { return };
        assert_eq!(context.length, feed.position, "invariant: positions are fed without gap");
        context.length += 1;
        context.state = mix(context.state ^ u64::from(feed.token));
        let state = other.unwrap_or(context.state);
        self.logits.push(if feed.logits { logits_of(state) } else { Vec::new() });
    }
}

impl Engine for SimulatedEngine {
    fn facts(&self) -> Facts {
        self.facts.clone()
    }

    fn open(&mut self) -> Option<Slot> {
        let free = self.slots.iter().position(Option::is_none)?;
        self.slots[free] = Some(Context { state: 0, length: 0 });
        u32::try_from(free).ok()
    }

    fn close(&mut self, slot: Slot) {
        if let Some(context) = self.slots.get_mut(slot as usize) {
            *context = None;
        }
    }

    fn step(&mut self, batch: &[Feed]) -> Result<(), EngineError> {
        if let Some(left) = &mut self.fail_in {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.fail_in = None;
                return Err(EngineError::Step(-1));
            }
        }
        if self.used() as usize + batch.len() > self.facts.cells as usize {
            return Err(EngineError::NoRoom(batch.len()));
        }
        let cells = self.used();
        self.logits.clear();
        batch.iter().for_each(|feed| self.feed(feed));
        let decodes = batch.iter().filter(|feed| feed.logits).count();
        let shape = Shape {
            decodes: u32::try_from(decodes).unwrap_or(u32::MAX),
            reads: u32::try_from(batch.len() - decodes).unwrap_or(u32::MAX),
            cells,
        };
        let takes = self.cost.predict(shape) as u64;
        self.clock.pass(takes);
        if self.paced {
            std::thread::sleep(Duration::from_nanos(takes));
        }
        Ok(())
    }

    fn logits(&self, index: usize) -> &[f32] {
        &self.logits[index]
    }

    fn resize(&mut self, threads: u32) {
        self.facts.threads = threads;
    }
}

/// Letters and spaces; about every fiftieth token ends the text.
fn logits_of(state: u64) -> Vec<f32> {
    let ends = mix(state).is_multiple_of(50);
    let of = |token: u32| match token {
        END if ends => 20.0,
        32 | 97..=122 => (mix(state ^ (u64::from(token) << 32)) % 10_000) as f32 / 1_000.0,
        _ => -20.0,
    };
    (0..SIZE).map(of).collect()
}

fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Its vocabulary.
#[derive(Debug, Clone, Copy, Default)]
pub struct SimulatedVocabulary;

impl Vocabulary for SimulatedVocabulary {
    fn size(&self) -> u32 {
        SIZE
    }

    fn tokenize(&self, text: &str, _: Marks) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    fn piece(&self, token: u32) -> Vec<u8> {
        u8::try_from(token).map(|byte| vec![byte]).unwrap_or_default()
    }

    fn longest(&self) -> usize {
        1
    }

    fn ends(&self, token: u32) -> bool {
        token == END
    }

    fn render(&self, messages: &[EngineMessage]) -> Result<String, String> {
        Ok(messages.iter().map(|message| format!("<{}>{}\n", message.role, message.content)).collect())
    }
}
