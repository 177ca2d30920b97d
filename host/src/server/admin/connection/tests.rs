//! Unit tests of the limits of admin connections: room for further ones, and time limits.

use super::*;

/// Opens connections, the first one the oldest, whose tasks never end; returns them with their states.
fn opened(count: usize, now: Instant) -> (Connections, Vec<Rc<AdminConnectionState>>) {
    let (connections, mut states) = (Connections::default(), Vec::new());
    for index in 0..count {
        connections.add(now + Duration::from_millis(index as u64), |state, _| {
            states.push(state);
            tokio::task::spawn_local(std::future::pending::<()>()).abort_handle()
        });
    }
    (connections, states)
}

fn ids(connections: &Connections) -> Vec<u64> {
    connections.open.borrow().keys().copied().collect()
}

/// Runs a test in a runtime on which tasks can be spawned.
fn within_a_runtime(test: impl FnOnce(Instant)) {
    let runtime = tokio::runtime::Builder::new_current_thread().build_local(Default::default()).unwrap();
    runtime.block_on(async { test(Instant::now()) });
}

#[test]
fn the_one_that_does_least_makes_room() {
    within_a_runtime(|now| {
        let (connections, states) = opened(MAX_CONNECTIONS - 1, now);
        assert!(connections.make_room() && ids(&connections).len() == MAX_CONNECTIONS - 1, "there is room");
        let (connections, mut states) = (drop(states), opened(MAX_CONNECTIONS, now)).1;
        states.iter().for_each(|state| state.enter(AdminPhase::Changing, now));
        assert!(!connections.make_room(), "changes are not cut off");
        for (index, phase) in [
            (5, AdminPhase::Reading),
            (6, AdminPhase::Sending),
            (7, AdminPhase::Idle),
            (8, AdminPhase::Head),
            (9, AdminPhase::New),
        ] {
            states[index].enter(phase, now);
        }
        states[10].enter(AdminPhase::New, now + Duration::from_secs(1));
        for closed in [9, 10, 8, 7, 6, 5] {
            assert!(connections.make_room() && !ids(&connections).contains(&closed), "{closed}");
            connections.add(now, |state, _| {
                state.enter(AdminPhase::Changing, now);
                states.push(state);
                tokio::task::spawn_local(std::future::pending::<()>()).abort_handle()
            });
        }
    });
}

#[test]
fn each_phase_has_its_time() {
    within_a_runtime(|now| {
        let phases = [
            AdminPhase::New,
            AdminPhase::Head,
            AdminPhase::Idle,
            AdminPhase::Sending,
            AdminPhase::Reading,
            AdminPhase::Changing,
        ];
        let (connections, states) = opened(phases.len(), now);
        states.iter().zip(phases).for_each(|(state, phase)| state.enter(phase, now));
        let left = |after| {
            connections.close_late(now + after);
            ids(&connections)
        };
        assert_eq!(left(HEAD_TIME), [0, 1, 2, 3, 4, 5]);
        assert_eq!(left(HEAD_TIME + Duration::from_millis(1)), [2, 4, 5]);
        assert_eq!(left(SEND_TIME + Duration::from_millis(1)), [2, 5]);
        assert_eq!(left(IDLE_TIME + Duration::from_millis(1)), [5]);
    });
}

#[test]
fn a_response_taken_in_drops_has_an_end() {
    within_a_runtime(|now| {
        let (connections, states) = opened(1, now);
        connections.send(&states[0], Bytes::new(), now);
        for second in 0..=SEND_TIME.as_secs() {
            states[0].since.set(now + Duration::from_secs(second));
            connections.close_late(now + Duration::from_secs(second));
            assert_eq!(ids(&connections), [0], "{second}");
        }
        connections.close_late(now + SEND_TIME + Duration::from_secs(1));
        assert!(ids(&connections).is_empty());
    });
}

#[test]
fn slow_readers_go_when_documents_take_too_much() {
    within_a_runtime(|now| {
        let (connections, states) = opened(6, now);
        let document = || Bytes::from(vec![0; MAX_UNSENT_BYTES / 2]);
        let shared = document();
        for (index, state) in states.iter().take(4).enumerate() {
            connections.send(state, shared.clone(), now + Duration::from_secs(index as u64));
        }
        assert_eq!(ids(&connections), [0, 1, 2, 3, 4, 5], "one document, however many take it");
        connections.send(&states[4], document(), now + Duration::from_secs(5));
        assert_eq!(ids(&connections), [0, 1, 2, 3, 4, 5]);
        connections.send(&states[5], document(), now + Duration::from_secs(6));
        assert_eq!(ids(&connections), [4, 5], "the first document has gone with all who took it");
        connections.send(&states[5], Bytes::from(vec![0; MAX_UNSENT_BYTES + 1]), now + Duration::from_secs(7));
        assert_eq!(ids(&connections), [5], "one that is too large alone is sent all the same");
    });
}

#[test]
fn stopping_closes_what_waits_and_finishes_what_runs() {
    within_a_runtime(|now| {
        let (connections, states) = opened(3, now);
        states[1].enter(AdminPhase::Changing, now);
        connections.send(&states[2], Bytes::new(), now);
        connections.stop(now);
        assert_eq!(ids(&connections), [1, 2]);
        states.iter().for_each(|state| state.enter(AdminPhase::Idle, now));
        connections.close_late(now);
        assert!(ids(&connections).is_empty());
    });
}
