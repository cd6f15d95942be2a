use super::*;

#[test]
fn the_profile_of_a_data_centre_gpu_holds_and_is_written_as_it_is_read() {
    let profile = Profile::read(crate::H100_8B).unwrap();
    assert_eq!(Profile::read(&toml::to_string(&profile).unwrap()).unwrap(), profile);
    // What its comments promise: about 6 ms for a step of one, 30 thousand prompt tokens a second.
    assert!((0.005..0.008).contains(&profile.decode.step_s(1, 1000)));
    let pass = profile.prefill.pass_s([(0, 4096), (0, 4096)]);
    assert!((20_000.0..35_000.0).contains(&(8192.0 / pass)), "{pass} s");
}

#[test]
fn what_is_no_profile_is_refused_by_its_key() {
    let refused = |from: &str, to: &str| {
        let text = crate::H100_8B.replacen(from, to, 1);
        assert_ne!(text, crate::H100_8B, "{from} is not in the profile");
        baton_contract::causes(&Profile::read(&text).unwrap_err())
    };
    let text = refused("s_per_step = ", "s_per_step = -");
    assert!(text.starts_with("the profile's decode.s_per_step: expected 0 to 3600 seconds, found -"), "{text}");
    assert!(refused("slots = ", "slots = 0 # ").contains("expected at least 1, found 0"));
    assert!(refused("s_per_step", "seconds_per_step").contains("unknown field `seconds_per_step`"));
    assert!(refused("hop_s = ", "# ").contains("missing field `hop_s`"));
}

#[test]
fn a_pass_costs_the_same_however_a_prompt_is_cut() {
    let prefill = Prefill { s_per_pass: 0.0, s_per_prompt: 0.0, ..Profile::read(crate::H100_8B).unwrap().prefill };
    let whole = prefill.pass_s([(0, 3000)]);
    let cut = prefill.pass_s([(0, 1000)]) + prefill.pass_s([(1000, 500)]) + prefill.pass_s([(1500, 1500)]);
    assert!((whole - cut).abs() < 1e-9);
}
