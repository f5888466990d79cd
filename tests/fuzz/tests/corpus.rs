//! Every target takes its corpus and many mutations of it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::panic::catch_unwind;

use sluice_fuzz::mutate::Mutator;
use sluice_fuzz::{Target, all, seeds};

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    target.corpus().unwrap().into_iter().map(|(_, bytes)| bytes).collect()
}

#[test]
fn every_target_takes_its_corpus_and_mutations_of_it() {
    for target in all() {
        let corpus = corpus(target);
        assert!(!corpus.is_empty(), "{} has no corpus", target.name);
        // A corpus that no decoder takes would test its first check only.
        let taken = corpus.iter().filter(|input| (target.run)(input)).count();
        assert!(taken > 0, "{} takes nothing of its corpus", target.name);
        let mut mutator = Mutator::new(7, &corpus, target.words);
        for _ in 0..target.tries {
            let input = mutator.next_input();
            let told = format!("{} is broken by {:?}", target.name, String::from_utf8_lossy(&input));
            assert!(catch_unwind(|| (target.run)(&input)).is_ok(), "{told}");
        }
    }
}

#[test]
fn the_corpus_holds_every_seed_as_it_is_made() {
    for (target, name, bytes) in seeds::all().unwrap() {
        let path = sluice_fuzz::find(target).unwrap().folder().join(name);
        assert!(std::fs::read(&path).is_ok_and(|kept| kept == bytes), "{}", path.display());
    }
}

/// Control: a decoder with a mistake is found, from a corpus that does not show it.
#[test]
fn a_planted_mistake_is_found() {
    fn planted(data: &[u8]) {
        let text = String::from_utf8_lossy(data);
        let Some(number) = text.strip_prefix("size=").and_then(|rest| rest.trim().parse::<u64>().ok()) else { return };
        assert!(number.checked_mul(512).is_some(), "an overflow");
    }
    let corpus = vec![b"size=12".to_vec()];
    let mut mutator = Mutator::new(7, &corpus, &[]);
    let found = (0..4000).any(|_| {
        let input = mutator.next_input();
        catch_unwind(|| planted(&input)).is_err()
    });
    assert!(found);
}
