//! What clients ask of endpoints: a prompt, how it is gone on with, and how long they stay for the answer.

use std::rc::Rc;

use sluice_engine::fair::Class;
use sluice_engine::runner::{Origin, Submission};
use sluice_engine::sample::Sampling;
use sluice_lifecycle::OpenRequest;
use sluice_proto::v1::EngineSampling;
use sluice_types::{EndpointId, KeyId, RequestId, TenantId};

use crate::controller::Reply;
use crate::params::SECOND;
use crate::sim::Sim;

/// Tokens of context that a sequence has: now and then fewer than a request asks for.
pub(crate) const CONTEXT: u32 = 240;
/// Tokens of a prompt, and of an answer, at most: as few as make an answer take seconds to minutes. A mask has a bit for each
/// token of an answer.
const PROMPT: u64 = 200;
const ANSWER: u64 = 60;

/// One request, as its client sent it.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) endpoint: EndpointId,
    pub(crate) tenant: TenantId,
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_tokens: u32,
    /// What is held for the prompt: the gateway's guess from above.
    pub(crate) prompt_ceiling: u64,
    pub(crate) sampling: EngineSampling,
    pub(crate) stop: Vec<Vec<u8>>,
    pub(crate) ignore_end: bool,
    pub(crate) class: Class,
    /// The answer comes token by token, or whole when it is over.
    pub(crate) stream: bool,
    /// The client is gone so long after it began, whatever it has got.
    pub(crate) leaves: Option<u64>,
    /// It reads in gulps, with seconds between them.
    pub(crate) slow: bool,
    /// The gateway cuts it at this token: its answer is larger than one may be.
    pub(crate) cut_at: Option<u32>,
}

impl Ask {
    /// What a worker is told, to go on behind the tokens that were generated.
    pub(crate) fn submission(&self, request: RequestId, origin: Origin, generated: Vec<u32>) -> Submission {
        Submission {
            origin,
            tenant: self.tenant.to_string(),
            weight: 1,
            class: self.class,
            request: request.to_string(),
            prompt: self.prompt.clone(),
            generated,
            max_tokens: self.max_tokens,
            sampling: Sampling::read(Some(&self.sampling)).expect("invariant: clients keep to the bounds"),
            stop: self.stop.clone(),
            ignore_end: self.ignore_end,
        }
    }
}

impl Sim {
    /// A client of any tenant asks an endpoint.
    pub(crate) fn ask(&mut self) {
        let active = self.active_endpoints();
        let Some(endpoint) = self.dice.pick(&active).copied() else { return };
        let place = self.dice.index(self.users.tenants.len());
        let (tenant, project) = self.users.tenants[place];
        let ask = self.asked_of(endpoint, tenant);
        let (prompt_ceiling, completion_ceiling) = (ask.prompt_ceiling, u64::from(ask.max_tokens));
        let key = KeyId::from_raw(9);
        let request = OpenRequest { endpoint, tenant, project, key, prompt_ceiling, completion_ceiling };
        self.enqueue(sluice_lifecycle::Command::OpenRequest(request), Reply::Gateway(Rc::new(ask)));
    }

    fn asked_of(&mut self, endpoint: EndpointId, tenant: TenantId) -> Ask {
        let dice = &mut self.asks;
        let letter = |number: u64| u32::from(b'a') + u32::try_from(number % 26).unwrap_or(0);
        let length = dice.range(1, PROMPT);
        let prompt: Vec<u32> = (0..length).map(|_| letter(dice.number())).collect();
        let warm = dice.chance(350);
        let sampling = EngineSampling {
            temperature: if warm { [0.5, 1.0, 1.5][dice.index(3)] } else { 0.0 },
            seed: if warm { dice.number() } else { 0 },
            frequency_penalty: if dice.chance(200) { 1.5 } else { 0.0 },
            presence_penalty: if dice.chance(100) { 0.5 } else { 0.0 },
            ..EngineSampling::default()
        };
        let max_tokens = u32::try_from(dice.range(1, ANSWER)).unwrap_or(1);
        let stop = (0..if dice.chance(200) { 2 } else { 0 }).map(|_| {
            let length = dice.range(1, 2);
            (0..length).map(|_| u8::try_from(letter(dice.number())).unwrap_or(b'a')).collect()
        });
        let stop = stop.collect();
        Ask {
            endpoint,
            tenant,
            max_tokens,
            prompt_ceiling: length + dice.range(0, 20),
            prompt,
            sampling,
            stop,
            ignore_end: dice.chance(300),
            class: if dice.chance(200) { Class::Batch } else { Class::Interactive },
            stream: dice.chance(800),
            leaves: dice.chance(150).then(|| dice.range(SECOND, 90 * SECOND)),
            slow: dice.chance(150),
            cut_at: dice.chance(30).then(|| u32::try_from(dice.range(0, u64::from(max_tokens) - 1)).unwrap_or(0)),
        }
    }
}
