//! The planted bugs are patches of a tree that moves: they must go on applying to it. Whether each is caught takes minutes,
//! and is asked by `cargo xtask verify spine 9`.

#[test]
fn all_planted_bugs_apply() {
    assert_eq!(sluice_sim::bugs::stale().expect("the patches can be tried"), Vec::<String>::new());
    assert_eq!(sluice_sim::bugs::count().expect("the patches can be listed"), 63);
}
